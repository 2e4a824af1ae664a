# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_ferryctl_global_optspecs
    string join \n api-socket= json timeout= h/help V/version
end

function __fish_ferryctl_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_ferryctl_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_ferryctl_using_subcommand
    set -l cmd (__fish_ferryctl_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c ferryctl -n "__fish_ferryctl_needs_command" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_needs_command" -l timeout -d 'Time to wait; default 10, for changes 150, to save or move a day' -r
complete -c ferryctl -n "__fish_ferryctl_needs_command" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_needs_command" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_needs_command" -s V -l version -d 'Print version'
complete -c ferryctl -n "__fish_ferryctl_needs_command" -f -a "ping" -d 'Ask whether Ferry is there, and for its version'
complete -c ferryctl -n "__fish_ferryctl_needs_command" -f -a "info" -d 'Show the VM: its state, its configuration, its devices'
complete -c ferryctl -n "__fish_ferryctl_needs_command" -f -a "create" -d 'Define a VM, without starting it'
complete -c ferryctl -n "__fish_ferryctl_needs_command" -f -a "boot" -d 'Start the guest'
complete -c ferryctl -n "__fish_ferryctl_needs_command" -f -a "pause" -d 'Stop the guest where it stands'
complete -c ferryctl -n "__fish_ferryctl_needs_command" -f -a "resume" -d 'Let a paused guest go on'
complete -c ferryctl -n "__fish_ferryctl_needs_command" -f -a "shutdown" -d 'End the guest; the VM stays defined'
complete -c ferryctl -n "__fish_ferryctl_needs_command" -f -a "reboot" -d 'End the guest and start it again'
complete -c ferryctl -n "__fish_ferryctl_needs_command" -f -a "power-button" -d 'Press the guest\'s power button, which asks it to power off'
complete -c ferryctl -n "__fish_ferryctl_needs_command" -f -a "delete" -d 'End the guest, if any, and forget the VM'
complete -c ferryctl -n "__fish_ferryctl_needs_command" -f -a "add-disk" -d 'Add a disk to a VM that does not run'
complete -c ferryctl -n "__fish_ferryctl_needs_command" -f -a "add-fs" -d 'Add a shared directory to a VM that does not run'
complete -c ferryctl -n "__fish_ferryctl_needs_command" -f -a "remove-device" -d 'Remove a device from a VM that does not run'
complete -c ferryctl -n "__fish_ferryctl_needs_command" -f -a "counters" -d 'Show the counters of the VM and its devices'
complete -c ferryctl -n "__fish_ferryctl_needs_command" -f -a "metrics" -d 'Print the metrics in Prometheus\' text format, with --json as well'
complete -c ferryctl -n "__fish_ferryctl_needs_command" -f -a "events" -d 'Show what has happened to the VM'
complete -c ferryctl -n "__fish_ferryctl_needs_command" -f -a "snapshot" -d 'Save the guest and what its back-ends hold'
complete -c ferryctl -n "__fish_ferryctl_needs_command" -f -a "restore" -d 'Bring a saved guest back, and let it go on'
complete -c ferryctl -n "__fish_ferryctl_needs_command" -f -a "progress" -d 'Show how a snapshot or restore stands, or how the last one has ended'
complete -c ferryctl -n "__fish_ferryctl_needs_command" -f -a "cancel" -d 'Give up the snapshot or restore that is under way'
complete -c ferryctl -n "__fish_ferryctl_needs_command" -f -a "migrate" -d 'Send the guest to another Ferry while it runs'
complete -c ferryctl -n "__fish_ferryctl_needs_command" -f -a "handover" -d 'Put a new process in the place of a running Ferry, with its guest'
complete -c ferryctl -n "__fish_ferryctl_needs_command" -f -a "receive" -d 'Receive a guest from another Ferry'
complete -c ferryctl -n "__fish_ferryctl_needs_command" -f -a "migration" -d 'Show how a migration stands, or how the last one has ended'
complete -c ferryctl -n "__fish_ferryctl_needs_command" -f -a "vmm-shutdown" -d 'End the guest, if any, and then Ferry'
complete -c ferryctl -n "__fish_ferryctl_needs_command" -f -a "completions" -d 'Print the completions for a shell'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand ping" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand ping" -l timeout -d 'Time to wait; default 10, for changes 150, to save or move a day' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand ping" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand ping" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand info" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand info" -l timeout -d 'Time to wait; default 10, for changes 150, to save or move a day' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand info" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand info" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand create" -l config -d 'The whole VM as JSON, as the API takes it; - is standard input' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand create" -l kernel -d 'An ELF kernel with a PVH note, or a bzImage' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand create" -l initramfs -d 'The initial RAM file system' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand create" -l cmdline -d 'The kernel\'s command line' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand create" -l cpus -d 'Virtual processors: boot=N,max=N' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand create" -l memory -d 'Guest RAM: size=SIZE,shared=on|off,hugepages=on|off,...' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand create" -l disk -d 'A disk: vhost_user=on,socket=PATH,id=NAME,...; may be repeated' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand create" -l fs -d 'A shared directory: tag=NAME,socket=PATH,id=NAME,...; may be repeated' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand create" -l vhost-user -d 'Any other device: socket=PATH,device_type=N,...; may be repeated' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand create" -l serial -d 'The serial port: off, null, tty, pty, file=PATH or socket=PATH' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand create" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand create" -l timeout -d 'Time to wait; default 10, for changes 150, to save or move a day' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand create" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand create" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand boot" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand boot" -l timeout -d 'Time to wait; default 10, for changes 150, to save or move a day' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand boot" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand boot" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand pause" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand pause" -l timeout -d 'Time to wait; default 10, for changes 150, to save or move a day' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand pause" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand pause" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand resume" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand resume" -l timeout -d 'Time to wait; default 10, for changes 150, to save or move a day' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand resume" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand resume" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand shutdown" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand shutdown" -l timeout -d 'Time to wait; default 10, for changes 150, to save or move a day' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand shutdown" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand shutdown" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand reboot" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand reboot" -l timeout -d 'Time to wait; default 10, for changes 150, to save or move a day' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand reboot" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand reboot" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand power-button" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand power-button" -l timeout -d 'Time to wait; default 10, for changes 150, to save or move a day' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand power-button" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand power-button" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand delete" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand delete" -l timeout -d 'Time to wait; default 10, for changes 150, to save or move a day' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand delete" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand delete" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand add-disk" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand add-disk" -l timeout -d 'Time to wait; default 10, for changes 150, to save or move a day' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand add-disk" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand add-disk" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand add-fs" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand add-fs" -l timeout -d 'Time to wait; default 10, for changes 150, to save or move a day' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand add-fs" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand add-fs" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand remove-device" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand remove-device" -l timeout -d 'Time to wait; default 10, for changes 150, to save or move a day' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand remove-device" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand remove-device" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand counters" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand counters" -l timeout -d 'Time to wait; default 10, for changes 150, to save or move a day' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand counters" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand counters" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand metrics" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand metrics" -l timeout -d 'Time to wait; default 10, for changes 150, to save or move a day' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand metrics" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand metrics" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand events" -l after -d 'Only events after the one with this number' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand events" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand events" -l timeout -d 'Time to wait; default 10, for changes 150, to save or move a day' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand events" -s f -l follow -d 'Go on with events as they happen, until Ctrl-C or until Ferry ends'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand events" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand events" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand snapshot; and not __fish_seen_subcommand_from inspect verify" -l after -d 'What becomes of the guest: resume, stop or pause; by default as before' -r -f -a "resume\t'It runs'
stop\t'It is shut down'
pause\t'It is paused'"
complete -c ferryctl -n "__fish_ferryctl_using_subcommand snapshot; and not __fish_seen_subcommand_from inspect verify" -l while-paused -d 'Run this with sh while the guest stands still and its disks rest' -r -f -a "(__fish_complete_command)"
complete -c ferryctl -n "__fish_ferryctl_using_subcommand snapshot; and not __fish_seen_subcommand_from inspect verify" -l hold-limit -d 'How long CMD may hold the guest; 60 by default' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand snapshot; and not __fish_seen_subcommand_from inspect verify" -l prepare -d 'How many ms back-ends may prepare before the pause; 500 by default' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand snapshot; and not __fish_seen_subcommand_from inspect verify" -l state-limit -d 'The most state that one back-end may have; 16G by default' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand snapshot; and not __fish_seen_subcommand_from inspect verify" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand snapshot; and not __fish_seen_subcommand_from inspect verify" -l timeout -d 'Time to wait; default 10, for changes 150, to save or move a day' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand snapshot; and not __fish_seen_subcommand_from inspect verify" -l pause -d 'Have Ferry pause the guest, as is the default'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand snapshot; and not __fish_seen_subcommand_from inspect verify" -l no-pause -d 'Save a guest that is paused already'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand snapshot; and not __fish_seen_subcommand_from inspect verify" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand snapshot; and not __fish_seen_subcommand_from inspect verify" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand snapshot; and not __fish_seen_subcommand_from inspect verify" -a "inspect" -d 'Show what is in a snapshot, without a Ferry'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand snapshot; and not __fish_seen_subcommand_from inspect verify" -a "verify" -d 'Check every byte of a snapshot, without a Ferry; status 1 if it is damaged'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand snapshot; and __fish_seen_subcommand_from inspect" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand snapshot; and __fish_seen_subcommand_from inspect" -l timeout -d 'Time to wait; default 10, for changes 150, to save or move a day' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand snapshot; and __fish_seen_subcommand_from inspect" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand snapshot; and __fish_seen_subcommand_from inspect" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand snapshot; and __fish_seen_subcommand_from verify" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand snapshot; and __fish_seen_subcommand_from verify" -l timeout -d 'Time to wait; default 10, for changes 150, to save or move a day' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand snapshot; and __fish_seen_subcommand_from verify" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand snapshot; and __fish_seen_subcommand_from verify" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand restore" -l memory -d 'How RAM is made of its files: copy, as by default, ondemand or adopt' -r -f -a "copy\t'RAM is copied and checked'
ondemand\t'A clone of the files becomes RAM'
adopt\t'The files become RAM, and the snapshot is used up'"
complete -c ferryctl -n "__fish_ferryctl_using_subcommand restore" -l socket -d 'The socket of a device whose back-end is elsewhere now; may be repeated' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand restore" -l serial -d 'Where the serial port leads now: null, tty, pty, file=PATH or socket=PATH' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand restore" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand restore" -l timeout -d 'Time to wait; default 10, for changes 150, to save or move a day' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand restore" -l paused -d 'Leave the guest paused'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand restore" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand restore" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand progress" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand progress" -l timeout -d 'Time to wait; default 10, for changes 150, to save or move a day' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand progress" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand progress" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand cancel" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand cancel" -l timeout -d 'Time to wait; default 10, for changes 150, to save or move a day' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand cancel" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand cancel" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand migrate" -l downtime-ms -d 'How many ms the guest may stand still; 300 by default' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand migrate" -l time-limit -d 'Seconds in which RAM may be sent before the pause; 3600 by default' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand migrate" -l on-timeout -d 'What is done then: cancel, as by default, or ignore' -r -f -a "cancel\t'The migration fails'
ignore\t'The guest is moved, however long it stands still'"
complete -c ferryctl -n "__fish_ferryctl_using_subcommand migrate" -l connections -d 'How many connections RAM travels over, up to 16; 2 by default' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand migrate" -l tls-dir -d 'Encrypt tcp, with ca-cert.pem, cert.pem and key.pem in DIR' -r -f -a "(__fish_complete_directories)"
complete -c ferryctl -n "__fish_ferryctl_using_subcommand migrate" -l unlogged -d 'Back-ends that cannot log: refuse, the default, or resend all RAM' -r -f -a "refuse\t'The migration is refused'
resend\t'All RAM is sent again while the guest stands still'"
complete -c ferryctl -n "__fish_ferryctl_using_subcommand migrate" -l state-limit -d 'The most state that one back-end may have; 16G by default' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand migrate" -l confirm-limit -d 'How long to wait for word from the receiver; 30 by default' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand migrate" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand migrate" -l timeout -d 'Time to wait; default 10, for changes 150, to save or move a day' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand migrate" -l throttle -d 'Slow the guest down if it dirties RAM faster than it can be sent'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand migrate" -l keep-source -d 'Have this Ferry stay, without a VM, when the guest has gone'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand migrate" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand migrate" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand handover" -l exec -d 'The program of the new process, which is started for it' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand handover" -l to -d 'Where ferryctl receive waits in the new process: unix:PATH' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand handover" -l log -d 'Where the new process\'s output goes; where ferryctl\'s does if not said' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand handover" -l serial -d 'The serial port now: null, pty, file=PATH or socket=PATH' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand handover" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand handover" -l timeout -d 'Time to wait; default 10, for changes 150, to save or move a day' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand handover" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand handover" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand receive" -l socket -d 'The socket of a device\'s back-end on this side; may be repeated' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand receive" -l serial -d 'The serial port now: null, tty, pty, file=PATH or socket=PATH' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand receive" -l tls-dir -d 'Encrypt tcp, with ca-cert.pem, cert.pem and key.pem in DIR' -r -f -a "(__fish_complete_directories)"
complete -c ferryctl -n "__fish_ferryctl_using_subcommand receive" -l state-limit -d 'The most state that one back-end may have; 16G by default' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand receive" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand receive" -l timeout -d 'Time to wait; default 10, for changes 150, to save or move a day' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand receive" -l insecure -d 'Let anybody send who reaches this address, without encryption'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand receive" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand receive" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand migration; and not __fish_seen_subcommand_from cancel reclaim" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand migration; and not __fish_seen_subcommand_from cancel reclaim" -l timeout -d 'Time to wait; default 10, for changes 150, to save or move a day' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand migration; and not __fish_seen_subcommand_from cancel reclaim" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand migration; and not __fish_seen_subcommand_from cancel reclaim" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand migration; and not __fish_seen_subcommand_from cancel reclaim" -f -a "cancel" -d 'Give up the migration that is under way; a guest that was to be sent goes on'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand migration; and not __fish_seen_subcommand_from cancel reclaim" -f -a "reclaim" -d 'Take back a guest that was handed over and has certainly never run elsewhere'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand migration; and __fish_seen_subcommand_from cancel" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand migration; and __fish_seen_subcommand_from cancel" -l timeout -d 'Time to wait; default 10, for changes 150, to save or move a day' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand migration; and __fish_seen_subcommand_from cancel" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand migration; and __fish_seen_subcommand_from cancel" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand migration; and __fish_seen_subcommand_from reclaim" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand migration; and __fish_seen_subcommand_from reclaim" -l timeout -d 'Time to wait; default 10, for changes 150, to save or move a day' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand migration; and __fish_seen_subcommand_from reclaim" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand migration; and __fish_seen_subcommand_from reclaim" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand vmm-shutdown" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand vmm-shutdown" -l timeout -d 'Time to wait; default 10, for changes 150, to save or move a day' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand vmm-shutdown" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand vmm-shutdown" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand completions" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand completions" -l timeout -d 'Time to wait; default 10, for changes 150, to save or move a day' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand completions" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand completions" -s h -l help -d 'Print help (see more with \'--help\')'

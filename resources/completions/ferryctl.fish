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
complete -c ferryctl -n "__fish_ferryctl_needs_command" -l timeout -d 'How long to wait; by default 150 to change the VM\'s state, else 10' -r
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
complete -c ferryctl -n "__fish_ferryctl_needs_command" -f -a "vmm-shutdown" -d 'End the guest, if any, and then Ferry'
complete -c ferryctl -n "__fish_ferryctl_needs_command" -f -a "completions" -d 'Print the completions for a shell'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand ping" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand ping" -l timeout -d 'How long to wait; by default 150 to change the VM\'s state, else 10' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand ping" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand ping" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand info" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand info" -l timeout -d 'How long to wait; by default 150 to change the VM\'s state, else 10' -r
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
complete -c ferryctl -n "__fish_ferryctl_using_subcommand create" -l timeout -d 'How long to wait; by default 150 to change the VM\'s state, else 10' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand create" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand create" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand boot" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand boot" -l timeout -d 'How long to wait; by default 150 to change the VM\'s state, else 10' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand boot" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand boot" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand pause" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand pause" -l timeout -d 'How long to wait; by default 150 to change the VM\'s state, else 10' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand pause" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand pause" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand resume" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand resume" -l timeout -d 'How long to wait; by default 150 to change the VM\'s state, else 10' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand resume" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand resume" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand shutdown" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand shutdown" -l timeout -d 'How long to wait; by default 150 to change the VM\'s state, else 10' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand shutdown" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand shutdown" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand reboot" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand reboot" -l timeout -d 'How long to wait; by default 150 to change the VM\'s state, else 10' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand reboot" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand reboot" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand power-button" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand power-button" -l timeout -d 'How long to wait; by default 150 to change the VM\'s state, else 10' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand power-button" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand power-button" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand delete" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand delete" -l timeout -d 'How long to wait; by default 150 to change the VM\'s state, else 10' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand delete" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand delete" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand add-disk" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand add-disk" -l timeout -d 'How long to wait; by default 150 to change the VM\'s state, else 10' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand add-disk" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand add-disk" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand add-fs" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand add-fs" -l timeout -d 'How long to wait; by default 150 to change the VM\'s state, else 10' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand add-fs" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand add-fs" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand remove-device" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand remove-device" -l timeout -d 'How long to wait; by default 150 to change the VM\'s state, else 10' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand remove-device" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand remove-device" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand counters" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand counters" -l timeout -d 'How long to wait; by default 150 to change the VM\'s state, else 10' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand counters" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand counters" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand metrics" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand metrics" -l timeout -d 'How long to wait; by default 150 to change the VM\'s state, else 10' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand metrics" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand metrics" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand events" -l after -d 'Only events after the one with this number' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand events" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand events" -l timeout -d 'How long to wait; by default 150 to change the VM\'s state, else 10' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand events" -s f -l follow -d 'Go on with events as they happen, until Ctrl-C or until Ferry ends'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand events" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand events" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand vmm-shutdown" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand vmm-shutdown" -l timeout -d 'How long to wait; by default 150 to change the VM\'s state, else 10' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand vmm-shutdown" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand vmm-shutdown" -s h -l help -d 'Print help'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand completions" -l api-socket -d 'The socket on which Ferry listens' -r -F
complete -c ferryctl -n "__fish_ferryctl_using_subcommand completions" -l timeout -d 'How long to wait; by default 150 to change the VM\'s state, else 10' -r
complete -c ferryctl -n "__fish_ferryctl_using_subcommand completions" -l json -d 'Print JSON: one line for an answer or an event, else nothing'
complete -c ferryctl -n "__fish_ferryctl_using_subcommand completions" -s h -l help -d 'Print help (see more with \'--help\')'

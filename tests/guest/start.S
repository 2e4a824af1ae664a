/* The way in (PVH), and the way into and out of interrupt handlers.
 *
 * Only instructions that KVM's own emulator knows: on machines without hardware
 * virtualization it interprets all of this.
 */
#define COM1 0x3f8

        /* Xen's "PHYS32_ENTRY" note (type 18) makes this file a PVH kernel. */
        .section .note.pvh, "a", @note
        .balign 4
        .long 4                         /* bytes in the name */
        .long 8                         /* bytes in the descriptor: an address as in 64-bit kernels */
        .long 18
        .asciz "Xen"
        .long entry, 0

        .section .text.entry, "ax"
        .code32
        .globl entry
entry:
        /* Speak before anything else: the time to this byte is what a boot benchmark measures. */
        movl    $greeting, %esi
        movl    $COM1, %edx
1:      movb    (%esi), %al
        testb   %al, %al
        jz      2f
        outb    %al, %dx
        incl    %esi
        jmp     1b

2:      movl    $stack_top, %esp
        lgdt    gdt_pointer
        ljmp    $0x08, $3f
3:      movw    $0x10, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        pushl   %ebx                    /* struct hvm_start_info */
        call    tiny_main
4:      cli
        hlt
        jmp     4b

/* Interrupts. Each vector has a stub of 16 bytes that pushes its number. */
        .section .text
        .balign 16
        .globl vector_stubs
vector_stubs:
        .set    vector, 0
        .rept   96
        .balign 16
        pushl   $vector
        jmp     vector_common
        .set    vector, vector + 1
        .endr

vector_common:
        pushal
        cld
        pushl   %esp                    /* struct frame */
        call    interrupt
        addl    $4, %esp
        popal
        addl    $4, %esp                /* the vector's number */
        /* KVM's emulator has no iret in protected mode. The stack holds EIP, CS, EFLAGS; make it
         * EFLAGS, EIP, so that popf and ret leave nothing behind and may be interrupted again. */
        pushl   %eax
        movl    4(%esp), %eax
        xchgl   %eax, 12(%esp)
        movl    %eax, 8(%esp)
        popl    %eax
        addl    $4, %esp
        popfl
        ret

/* Where the other processors begin, in real mode; copied below 1 MiB. */
        .globl  ap_code, ap_code_end
ap_code:
        .code16
        cli
        xorw    %ax, %ax
        movw    %ax, %ds
        /* The address of the copy is 0x8000. */
        lgdtl   0x8000 + ap_gdt_pointer - ap_code
        movl    %cr0, %eax
        orl     $1, %eax
        movl    %eax, %cr0
        ljmpl   $0x08, $ap_flat
        .balign 4
ap_gdt_pointer:
        .word   gdt_end - gdt - 1
        .long   gdt
ap_code_end:

        .code32
ap_flat:
        movw    $0x10, %ax
        movw    %ax, %ds
        lock incl aps_online
1:      cli
        hlt
        jmp     1b

        .section .rodata
greeting:
        .asciz  "tiny: hello\n"
        .balign 8
gdt:    .quad   0
        .quad   0x00cf9b000000ffff      /* 08: code, flat, 32 bits, already accessed */
        .quad   0x00cf93000000ffff      /* 10: data, flat */
gdt_end:
gdt_pointer:
        .word   gdt_end - gdt - 1
        .long   gdt

        .section .bss
        .balign 16
        .skip   16384
stack_top:

        .section .note.GNU-stack, "", @progbits

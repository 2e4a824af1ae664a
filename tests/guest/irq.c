/* Interrupts: the IDT, the local APIC, its timer, and the other processors. */
#include "tiny.h"

#define LAPIC 0xfee00000u
enum { LAPIC_EOI = 0xb0, LAPIC_SPURIOUS = 0xf0, LAPIC_ICR_LOW = 0x300, LAPIC_ICR_HIGH = 0x310,
       LAPIC_TIMER = 0x320, LAPIC_TIMER_COUNT = 0x380, LAPIC_TIMER_DIVIDE = 0x3e0 };

struct frame { u32 edi, esi, ebp, esp, ebx, edx, ecx, eax, vector, first, second; };

struct gate { u16 offset_low, selector, flags, offset_high; };
static struct gate idt[VECTORS] __attribute__((aligned(8)));

extern u8 vector_stubs[], ap_code[], ap_code_end[];
volatile u32 irq_count[VECTORS];
volatile u32 aps_online;

static volatile u32 *lapic(u32 offset) { return (volatile u32 *)(LAPIC + offset); }

void interrupt(struct frame *frame)
{
    if (frame->vector < 32)
        fail("exception %u eip=%x/%x cr2=unknown", frame->vector, frame->first, frame->second);
    irq_count[frame->vector]++;
    *lapic(LAPIC_EOI) = 0;
}

static void load_idt(const void *table, u16 limit)
{
    struct { u16 limit; u32 base; } __attribute__((packed)) pointer = {limit, (u32)table};
    __asm__ volatile("lidt %0" ::"m"(pointer) : "memory");
}

void irq_init(void)
{
    for (u32 i = 0; i < VECTORS; i++) {
        u32 stub = (u32)vector_stubs + 16 * i;
        idt[i] = (struct gate){stub, 0x08, 0x8e00, stub >> 16};
    }
    load_idt(idt, sizeof(idt) - 1);
    /* The two legacy controllers stay silent. */
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    /* Enabled; spurious interrupts go to the last vector that has a stub. */
    *lapic(LAPIC_SPURIOUS) = 0x100 | (VECTORS - 1);
    irq_on();
}

void timer_every(u32 ms)
{
    *lapic(LAPIC_TIMER) = ms ? 0x20000 | VECTOR_TIMER : 0x10000;
    *lapic(LAPIC_TIMER_DIVIDE) = 0xb; /* by 1 */
    /* Virtual LAPIC timers count nanoseconds. Nothing here depends on it being exact. */
    *lapic(LAPIC_TIMER_COUNT) = ms * 1000000;
}

void doze_ms(u32 ms)
{
    timer_every(ms);
    irq_count[VECTOR_TIMER] = 0;
    irq_off();
    while (irq_count[VECTOR_TIMER] == 0)
        irq_on_and_sleep(), irq_off();
    irq_on();
    timer_every(0);
}

void triple_fault(void)
{
    irq_off();
    load_idt(NULL, 0);
    __asm__ volatile("ud2"); /* int3 is not emulated */
}

u32 smp_start(void)
{
    memcpy((void *)0x8000, ap_code, ap_code_end - ap_code);
    *lapic(LAPIC_ICR_LOW) = 0xc4500; /* INIT to all others */
    sleep_ms(10);
    for (u32 i = 0; i < 2; i++) {
        *lapic(LAPIC_ICR_LOW) = 0xc4608; /* SIPI, page 8 */
        sleep_ms(10);
    }
    return aps_online + 1;
}

/* Time: the TSC, whose rate is told by CPUID or measured once against the PIT. */
#include "tiny.h"

#define PIT_HZ 1193182u

static u64 tsc(void)
{
    u32 low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (u64)high << 32 | low;
}

static u16 pit_count(void)
{
    outb(0x43, 0); /* latch channel 0 */
    u16 low = inb(0x40);
    return low | inb(0x40) << 8;
}

static u32 tsc_per_ms;
static u64 tsc_start;

/* In 5 ms. A processor that is taken away for a while in between measures nonsense. */
static u32 measure(u64 *begin)
{
    u16 from = pit_count(), passed;
    *begin = tsc();
    do {
        passed = from - pit_count();
    } while (passed < PIT_HZ / 200);
    u64 ticks = tsc() - *begin;
    return div64(ticks * (PIT_HZ / 1000), passed, NULL);
}

/* What CPUID says; 0 if nothing. VMMs without a PIT do. */
static u32 told_tsc_per_ms(void)
{
    enum { HYPERVISOR = 0x40000000, TIMING = 0x40000010 };
    u32 highest, khz, b, c, d;
    __asm__ volatile("cpuid" : "=a"(highest), "=b"(b), "=c"(c), "=d"(d) : "a"(HYPERVISOR), "c"(0));
    if (highest < TIMING || highest > TIMING + 0xff)
        return 0;
    __asm__ volatile("cpuid" : "=a"(khz), "=b"(b), "=c"(c), "=d"(d) : "a"(TIMING), "c"(0));
    return khz;
}

static void calibrate(void)
{
    tsc_start = tsc();
    tsc_per_ms = told_tsc_per_ms();
    if (tsc_per_ms)
        return;
    enum { TRIES = 100, CLOSE = 64 /* a 64th */ };
    outb(0x43, 0x34); /* channel 0, both bytes, mode 2: counts down from 65536 again and again */
    outb(0x40, 0);
    outb(0x40, 0);
    while (pit_count() == 0) /* the count is loaded with the next pulse */
        ;
    /* What is measured twice in a row is no nonsense. */
    u64 begin;
    u32 last = 0, rate = measure(&begin);
    for (u32 i = 0; i < TRIES; i++) {
        last = rate;
        rate = measure(&begin);
        u32 difference = rate > last ? rate - last : last - rate;
        if (difference <= rate / CLOSE)
            break;
    }
    CHECK(rate, "the TSC stands still");
    tsc_per_ms = rate;
    tsc_start = begin;
}

u32 now_ms(void)
{
    if (!tsc_per_ms)
        calibrate();
    return div64(tsc() - tsc_start, tsc_per_ms, NULL);
}

void sleep_ms(u32 ms)
{
    u32 begin = now_ms();
    while (now_ms() - begin < ms)
        cpu_relax();
}

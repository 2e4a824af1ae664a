/* RAM: the VMM's map, and whether memory is where the map says, also above 4 GiB. */
#include "tiny.h"

/* Above 4 GiB memory is seen through a window of 2 MiB, with paging that maps all else below 4 GiB onto
 * itself. It is that of long mode, in which this code goes on in compatibility mode: not every KVM that
 * interprets knows PAE by itself. No interrupt may come meanwhile. */
#define WINDOW 0x40000000u
#define LARGE_PAGE (2u << 20)
#define MSR_EFER 0xc0000080u
#define EFER_LME 0x100u

enum { PRESENT_WRITABLE = 3, LARGE = 0x80 };

static u64 level4[512] __attribute__((aligned(4096)));
static u64 level3[512] __attribute__((aligned(4096)));
static u64 level2[4][512] __attribute__((aligned(4096)));

static void set_long_mode(int enabled)
{
    u32 low, high;
    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(MSR_EFER));
    low = enabled ? low | EFER_LME : low & ~EFER_LME;
    __asm__ volatile("wrmsr" ::"a"(low), "d"(high), "c"(MSR_EFER));
}

static void load_tables(void) { __asm__ volatile("movl %0, %%cr3" ::"r"(level4) : "memory"); }

static void paging_on(void)
{
    level4[0] = (u32)level3 | PRESENT_WRITABLE;
    for (u32 i = 0; i < 4; i++) {
        level3[i] = (u32)level2[i] | PRESENT_WRITABLE;
        for (u32 j = 0; j < 512; j++)
            level2[i][j] = (u64)(i * 512 + j) * LARGE_PAGE | LARGE | PRESENT_WRITABLE;
    }
    irq_off();
    u32 value;
    __asm__ volatile("movl %%cr4, %0; orl $0x20, %0; movl %0, %%cr4" : "=r"(value)); /* PAE */
    load_tables();
    set_long_mode(1);
    __asm__ volatile("movl %%cr0, %0; orl $0x80000000, %0; movl %0, %%cr0" : "=r"(value)::"memory"); /* PG */
}

static void paging_off(void)
{
    u32 value;
    __asm__ volatile("movl %%cr0, %0; andl $0x7fffffff, %0; movl %0, %%cr0" : "=r"(value)::"memory");
    set_long_mode(0);
    __asm__ volatile("movl %%cr4, %0; andl $~0x20, %0; movl %0, %%cr4" : "=r"(value));
    irq_on();
}

/* The word at a guest-physical address; valid until the next call. */
static volatile u32 *reach(u64 address)
{
    if (!(address >> 32))
        return (volatile u32 *)(u32)address;
    level2[WINDOW >> 30][0] = (address & ~(u64)(LARGE_PAGE - 1)) | LARGE | PRESENT_WRITABLE;
    load_tables();
    return (volatile u32 *)(WINDOW + ((u32)address & (LARGE_PAGE - 1)));
}

u32 map_above_4g(void)
{
    paging_on();
    for (u32 i = 0; i < 512; i++)
        level2[WINDOW >> 30][i] = (4ull << 30) + (u64)i * LARGE_PAGE + (LARGE | PRESENT_WRITABLE);
    load_tables();
    return WINDOW;
}

void unmap_above_4g(void) { paging_off(); }

static u32 stamp(u64 address) { return (u32)(address >> 12) * 0x9e3779b1u ^ (u32)address; }

/* Edges are probed without harm: what was there comes back. */
static u32 saved[64][2];

static u32 edges(u64 *addresses)
{
    const struct memmap_entry *map = (const struct memmap_entry *)(u32)start_info->memmap;
    u32 count = 0;
    for (u32 i = 0; i < start_info->memmap_entries && count + 2 <= ARRAY_LEN(saved) * 2; i++) {
        if (map[i].type != 1)
            continue;
        addresses[count++] = map[i].base;
        addresses[count++] = map[i].base + map[i].size - 4;
    }
    return count;
}

static void check_edges(void)
{
    static u64 addresses[ARRAY_LEN(saved) * 2];
    u32 count = edges(addresses), high = 0;
    u32 *before = &saved[0][0];
    for (u32 i = 0; i < count; i++)
        high |= addresses[i] >> 32;
    if (high)
        paging_on();
    /* First all are written, then all are read: no two may be the same memory. */
    for (u32 i = 0; i < count; i++) {
        volatile u32 *word = reach(addresses[i]);
        before[i] = *word;
        *word = stamp(addresses[i]);
    }
    u64 wrong = 0;
    for (u32 i = 0; i < count; i++) {
        volatile u32 *word = reach(addresses[i]);
        if (*word != stamp(addresses[i]) && !wrong)
            wrong = addresses[i] | 1;
        *word = before[i];
    }
    if (high)
        paging_off();
    CHECK(!wrong, "no memory at %X", wrong & ~1ull);
    say("memory edges=%u above-4g=%u", count, !!high);
}

void mode_memory(void)
{
    const struct memmap_entry *map = (const struct memmap_entry *)(u32)start_info->memmap;
    CHECK(map && start_info->memmap_entries, "no memory map");
    u64 total = 0;
    for (u32 i = 0; i < start_info->memmap_entries; i++) {
        say("memmap base=%X size=%X type=%u", map[i].base, map[i].size, map[i].type);
        CHECK(map[i].size && map[i].base + map[i].size > map[i].base, "entry %u of the map is empty or wraps", i);
        for (u32 j = 0; j < i; j++)
            CHECK(map[i].base >= map[j].base + map[j].size || map[j].base >= map[i].base + map[i].size,
                  "entries %u and %u of the map overlap", j, i);
        if (map[i].type == 1)
            total += map[i].size;
    }
    say("memory ram=%U modules=%u", total, start_info->nr_modules);
    check_edges();
    acpi_report();
}

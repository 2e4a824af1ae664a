/* The tiny guest: what its parts share. 32-bit flat protected mode, no paging, no libc. */
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed int s32;

#define NULL ((void *)0)
#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))

/* --- Ports, memory, barriers --- */

static inline void outb(u16 port, u8 value) { __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port)); }
static inline void outl(u16 port, u32 value) { __asm__ volatile("outl %0, %1" ::"a"(value), "Nd"(port)); }
static inline void outw(u16 port, u16 value) { __asm__ volatile("outw %0, %1" ::"a"(value), "Nd"(port)); }

static inline u8 inb(u16 port)
{
    u8 value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline u16 inw(u16 port)
{
    u16 value;
    __asm__ volatile("inw %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline u32 inl(u16 port)
{
    u32 value;
    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

/* mfence belongs to SSE2, which the emulator does not know. */
static inline void barrier(void) { __asm__ volatile("lock addl $0, (%%esp)" ::: "memory", "cc"); }
static inline void cpu_relax(void) { __asm__ volatile("pause" ::: "memory"); }
static inline void irq_off(void) { __asm__ volatile("cli" ::: "memory"); }
static inline void irq_on(void) { __asm__ volatile("sti" ::: "memory"); }
/* Enables interrupts and sleeps, with no gap in between. */
static inline void irq_on_and_sleep(void) { __asm__ volatile("sti; hlt" ::: "memory"); }

void *memcpy(void *to, const void *from, u32 bytes);
void *memset(void *to, int value, u32 bytes);
int memcmp(const void *a, const void *b, u32 bytes);
u32 strlen(const char *s);
int streq(const char *a, const char *b);
/* The remainder goes to *rest unless that is NULL. */
u64 div64(u64 dividend, u32 divisor, u32 *rest);

/* --- Output: one line "tiny: …" each. Formats: %s %u %x %U (u64 decimal) %X (u64 hexadecimal) --- */

void say(const char *format, ...);
/* Prints "tiny: FAIL …", then powers off. */
__attribute__((noreturn)) void fail(const char *format, ...);
#define CHECK(condition, ...) do { if (!(condition)) fail(__VA_ARGS__); } while (0)

/* --- The command line: words "key=value" --- */

void args_init(const char *command_line);
/* The value of a key, or `otherwise`; numbers may be hexadecimal and end in K, M or G. */
u32 arg(const char *key, u32 otherwise);
const char *arg_text(const char *key, const char *otherwise);

/* --- What the VMM hands over (PVH boot ABI) --- */

struct memmap_entry { u64 base, size; u32 type, reserved; };
struct hvm_start_info {
    u32 magic, version, flags, nr_modules;
    u64 modlist, cmdline, rsdp, memmap;
    u32 memmap_entries, reserved;
};
extern const struct hvm_start_info *start_info;

/* --- acpi.c --- */

struct acpi_header { char signature[4]; u32 length; u8 revision, checksum; char oem[6], table[8]; u32 oem_revision, creator, creator_revision; } __attribute__((packed));
void acpi_init(u32 rsdp);
/* The table of this name, or NULL. */
const struct acpi_header *acpi_table(const char *signature);
/* Checks every table's checksum and prints what it found. */
void acpi_report(void);
/* ECAM's base, 0 if there is no MCFG. */
u32 acpi_ecam(void);
void acpi_reset(void);
__attribute__((noreturn)) void power_off(void);

/* --- irq.c --- */

enum { VECTOR_TIMER = 0x30, VECTOR_MSIX = 0x40, VECTORS = 96 };
extern volatile u32 irq_count[VECTORS];
extern volatile u32 aps_online;
void irq_init(void);
/* A LAPIC timer tick every so many milliseconds, to wake a sleeping processor; 0 stops it. */
void timer_every(u32 ms);
/* Sleeps, and leaves the processor to others. Uses the timer. */
void doze_ms(u32 ms);
void triple_fault(void);
u32 smp_start(void);

/* --- time.c --- */

/* Milliseconds since the first call. */
u32 now_ms(void);
void sleep_ms(u32 ms);

/* --- memory.c --- */

/* Where the GiB behind 4 GiB is to be seen; no interrupt comes until it is unmapped. */
u32 map_above_4g(void);
void unmap_above_4g(void);

/* --- pattern.c: numbered, checksummed contents; tests/src/pattern.rs computes the same --- */

void pattern_fill(u32 *words, u32 count, u32 seed, u32 number);
/* NULL, or what is wrong. */
const char *pattern_check(const u32 *words, u32 count, u32 seed, u32 number);

/* --- The modes; each returns if all went well --- */

void mode_memory(void);
void mode_pci(void);
void mode_blk_writer(void);
void mode_blk_ticks(void);
void mode_blk_requests(void);
void mode_blk_try(void);
void mode_blk_reset(void);
void mode_blk_resize(void);
void mode_fuse(void);
void mode_dirty(void);
void mode_ticks(void);
void mode_echo(void);
void mode_msix(void);
void mode_msix_wait(void);
void mode_reset_cycle(void);
void mode_reboot(void);
void mode_smp(void);

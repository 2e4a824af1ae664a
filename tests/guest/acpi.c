/* ACPI: finding and checking the tables, power-off, reset. */
#include "tiny.h"

struct gas { u8 space, bits, offset, access; u64 address; } __attribute__((packed));

struct fadt {
    struct acpi_header header;
    u32 facs, dsdt;
    u8 gap1[64 - 44];
    u32 pm1a_control;
    u8 gap2[112 - 68];
    u32 flags;
    struct gas reset;
    u8 reset_value;
    u16 arm_flags;
    u8 minor;
    u64 x_facs, x_dsdt;
    u8 gap3[244 - 148];
    struct gas sleep_control, sleep_status;
} __attribute__((packed));

enum { FADT_RESET_SUPPORTED = 1 << 10, FADT_HW_REDUCED = 1 << 20 };

static const struct acpi_header *tables[32];
static u32 table_count;

static u8 sum(const void *data, u32 bytes)
{
    u8 total = 0;
    for (const u8 *byte = data; bytes; bytes--)
        total += *byte++;
    return total;
}

static const struct fadt *fadt(void) { return (const struct fadt *)acpi_table("FACP"); }

static const struct acpi_header *dsdt(void)
{
    const struct fadt *table = fadt();
    if (!table)
        return NULL;
    u64 address = table->header.length >= 148 && table->x_dsdt ? table->x_dsdt : table->dsdt;
    return (const struct acpi_header *)(u32)address;
}

void acpi_init(u32 rsdp)
{
    const char *root = (const char *)rsdp;
    if (!root || memcmp(root, "RSD PTR ", 8))
        return;
    /* Revision 2 has the XSDT with 64-bit addresses. */
    int extended = root[15] >= 2;
    u32 at = extended ? *(const u32 *)(root + 24) : *(const u32 *)(root + 16);
    const struct acpi_header *list = (const struct acpi_header *)at;
    u32 width = extended ? 8 : 4;
    for (u32 i = sizeof(*list); i + width <= list->length && table_count < ARRAY_LEN(tables); i += width)
        tables[table_count++] = (const struct acpi_header *)*(const u32 *)((const u8 *)list + i);
}

const struct acpi_header *acpi_table(const char *signature)
{
    for (u32 i = 0; i < table_count; i++)
        if (!memcmp(tables[i]->signature, signature, 4))
            return tables[i];
    return NULL;
}

u32 acpi_ecam(void)
{
    const struct acpi_header *mcfg = acpi_table("MCFG");
    return mcfg && mcfg->length >= 60 ? *(const u32 *)((const u8 *)mcfg + 44) : 0;
}

static void report_table(const struct acpi_header *table)
{
    char name[5] = {table->signature[0], table->signature[1], table->signature[2], table->signature[3], 0};
    CHECK(!sum(table, table->length), "checksum of %s", name);
    say("acpi table=%s revision=%u length=%u at=%x", name, table->revision, table->length, (u32)table);
}

static void report_cpus(void)
{
    const struct acpi_header *madt = acpi_table("APIC");
    CHECK(madt, "no MADT");
    u32 cpus = 0, ioapics = 0;
    const u8 *at = (const u8 *)madt + 44, *end = (const u8 *)madt + madt->length;
    while (at + 2 <= end && at[1]) {
        if (at[0] == 0 && (*(const u32 *)(at + 4) & 1))
            cpus++;
        else if (at[0] == 9 && (*(const u32 *)(at + 8) & 1))
            cpus++;
        else if (at[0] == 1)
            ioapics++;
        at += at[1];
    }
    CHECK(at == end, "MADT entries do not end where the table does");
    say("acpi cpus=%u ioapics=%u lapic=%x", cpus, ioapics, *(const u32 *)((const u8 *)madt + 36));
}

void acpi_report(void)
{
    const u8 *rsdp = (const u8 *)(u32)start_info->rsdp;
    CHECK(rsdp && !memcmp(rsdp, "RSD PTR ", 8), "no RSDP at %x", (u32)rsdp);
    CHECK(!sum(rsdp, 20), "checksum of the RSDP");
    CHECK(rsdp[15] < 2 || !sum(rsdp, *(const u32 *)(rsdp + 20)), "extended checksum of the RSDP");
    if (rsdp[15] >= 2)
        report_table((const struct acpi_header *)*(const u32 *)(rsdp + 24));
    for (u32 i = 0; i < table_count; i++)
        report_table(tables[i]);
    CHECK(dsdt(), "no DSDT");
    report_table(dsdt());
    report_cpus();
    const struct acpi_header *mcfg = acpi_table("MCFG");
    if (mcfg) {
        const u8 *entry = (const u8 *)mcfg + 44;
        say("acpi ecam=%x segment=%u buses=%u", acpi_ecam(), *(const u16 *)(entry + 8), entry[11] - entry[10] + 1);
    }
    say("acpi hw-reduced=%u reset=%u", !!(fadt()->flags & FADT_HW_REDUCED), !!(fadt()->flags & FADT_RESET_SUPPORTED));
}

static void gas_write(const struct gas *where, u32 value)
{
    if (where->space == 1)
        outb(where->address, value);
    else
        *(volatile u8 *)(u32)where->address = value;
}

void acpi_reset(void)
{
    CHECK(fadt() && (fadt()->flags & FADT_RESET_SUPPORTED), "no ACPI reset register");
    gas_write(&fadt()->reset, fadt()->reset_value);
}

/* The first element of the package \_S5_, without an interpreter: Name, Package, length, count, integer. */
static u32 sleep_type(void)
{
    const struct acpi_header *table = dsdt();
    const u8 *code = (const u8 *)table;
    for (u32 i = sizeof(*table); table && i + 12 < table->length; i++) {
        if (memcmp(code + i, "_S5_\x12", 5))
            continue;
        const u8 *at = code + i + 5;
        at += 1 + (*at >> 6); /* PkgLength */
        at += 1;              /* NumElements */
        return *at == 0x0a ? at[1] : *at; /* BytePrefix, or ZeroOp and OneOp */
    }
    return 5;
}

void power_off(void)
{
    irq_off();
    const struct fadt *table = fadt();
    if (table && (table->flags & FADT_HW_REDUCED))
        gas_write(&table->sleep_control, sleep_type() << 2 | 1 << 5);
    else if (table)
        outw(table->pm1a_control, sleep_type() << 10 | 1 << 13);
    for (;;)
        __asm__ volatile("cli; hlt");
}

/* PCI: both ways into configuration space, and what a bus has on it. */
#include "pci.h"

static u32 port_read(struct pci_function fn, u16 offset, u8 bytes)
{
    outl(0xcf8, 1u << 31 | fn.bus << 16 | fn.device << 11 | fn.function << 8 | (offset & 0xfc));
    u16 port = 0xcfc + (offset & 3);
    return bytes == 1 ? inb(port) : bytes == 2 ? inw(port) : inl(port);
}

static volatile void *ecam(struct pci_function fn, u16 offset)
{
    return (volatile void *)(acpi_ecam() + (fn.bus << 20 | fn.device << 15 | fn.function << 12 | offset));
}

static u32 ecam_read(struct pci_function fn, u16 offset, u8 bytes)
{
    volatile void *at = ecam(fn, offset);
    return bytes == 1 ? *(volatile u8 *)at : bytes == 2 ? *(volatile u16 *)at : *(volatile u32 *)at;
}

u32 pci_read(struct pci_function fn, u16 offset, u8 bytes)
{
    return acpi_ecam() ? ecam_read(fn, offset, bytes) : port_read(fn, offset, bytes);
}

void pci_write(struct pci_function fn, u16 offset, u8 bytes, u32 value)
{
    outl(0xcf8, 1u << 31 | fn.bus << 16 | fn.device << 11 | fn.function << 8 | (offset & 0xfc));
    u16 port = 0xcfc + (offset & 3);
    if (bytes == 1)
        outb(port, value);
    else if (bytes == 2)
        outw(port, value);
    else
        outl(port, value);
}

int pci_next(struct pci_function *fn)
{
    for (; fn->device < 32; fn->device++, fn->function = 0) {
        int many = pci_read((struct pci_function){0, fn->device, 0}, 0x0e, 1) & 0x80;
        for (; fn->function < (many ? 8 : 1); fn->function++)
            if (pci_read(*fn, 0, 2) != 0xffff)
                return 1;
    }
    return 0;
}

struct pci_bar pci_bar(struct pci_function fn, u8 index)
{
    u16 at = PCI_BAR0 + 4 * index, command = pci_read(fn, PCI_COMMAND, 2);
    u32 low = pci_read(fn, at, 4), high = 0;
    struct pci_bar bar = {0, 0, 0, 0};
    if (low & 1)
        return bar;
    bar.wide = (low & 6) == 4 && index < 5;
    bar.prefetchable = !!(low & 8);
    pci_write(fn, PCI_COMMAND, 2, command & ~2);
    pci_write(fn, at, 4, 0xffffffff);
    u64 mask = pci_read(fn, at, 4) & ~15u;
    pci_write(fn, at, 4, low);
    if (bar.wide) {
        high = pci_read(fn, at + 4, 4);
        pci_write(fn, at + 4, 4, 0xffffffff);
        mask |= (u64)pci_read(fn, at + 4, 4) << 32;
        pci_write(fn, at + 4, 4, high);
    } else if (mask) {
        mask |= 0xffffffffull << 32;
    }
    pci_write(fn, PCI_COMMAND, 2, command);
    bar.base = (u64)high << 32 | (low & ~15u);
    bar.size = mask ? ~mask + 1 : 0;
    return bar;
}

u8 pci_capability(struct pci_function fn, u8 id, u8 from)
{
    if (!(pci_read(fn, PCI_STATUS, 2) & 0x10))
        return 0;
    u8 at = from ? pci_read(fn, from + 1, 1) : pci_read(fn, PCI_CAPABILITIES, 1);
    for (u32 steps = 0; at && steps < 48; steps++) {
        if (pci_read(fn, at, 1) == id)
            return at;
        at = pci_read(fn, at + 1, 1);
    }
    return 0;
}

/* --- mode=pci --- */

static void report_bars(struct pci_function fn)
{
    for (u8 i = 0; i < 6; i++) {
        struct pci_bar bar = pci_bar(fn, i);
        if (!bar.size)
            continue;
        say("pci bar fn=%u.%u n=%u base=%X size=%X bits=%u prefetchable=%u", fn.device, fn.function, i, bar.base,
            bar.size, bar.wide ? 64 : 32, bar.prefetchable);
        CHECK(!(bar.size & (bar.size - 1)), "BAR %u has a size that is no power of two", i);
        CHECK(!bar.base || !(bar.base & (bar.size - 1)), "BAR %u is not aligned", i);
        i += bar.wide;
    }
}

static void report_capabilities(struct pci_function fn)
{
    for (u8 at = pci_capability(fn, PCI_CAP_VENDOR, 0); at; at = pci_capability(fn, PCI_CAP_VENDOR, at))
        say("pci virtio fn=%u.%u type=%u bar=%u offset=%x length=%x", fn.device, fn.function, pci_read(fn, at + 3, 1),
            pci_read(fn, at + 4, 1), pci_read(fn, at + 8, 4), pci_read(fn, at + 12, 4));
    u8 msix = pci_capability(fn, PCI_CAP_MSIX, 0);
    if (msix)
        say("pci msix fn=%u.%u vectors=%u table=%x pba=%x", fn.device, fn.function,
            (pci_read(fn, msix + 2, 2) & 0x7ff) + 1, pci_read(fn, msix + 4, 4), pci_read(fn, msix + 8, 4));
}

/* Every width at every offset must be the same on both ways. */
static u32 compare_ways(struct pci_function fn)
{
    u32 compared = 0;
    for (u32 bytes = 1; bytes <= 4; bytes *= 2)
        for (u32 offset = 0; offset < 256; offset += bytes, compared++) {
            u32 a = port_read(fn, offset, bytes), b = ecam_read(fn, offset, bytes);
            CHECK(a == b, "function %u.%u offset %x: %x by port, %x by ECAM", fn.device, fn.function, offset, a, b);
        }
    return compared;
}

void mode_pci(void)
{
    u32 functions = 0, compared = 0;
    for (struct pci_function fn = {0, 0, 0}; pci_next(&fn); fn.function++, functions++) {
        u32 id = pci_read(fn, 0, 4), class = pci_read(fn, 8, 4), subsystem = pci_read(fn, 0x2c, 4);
        say("pci function fn=%u.%u vendor=%x device=%x class=%x revision=%u subsystem=%x", fn.device, fn.function,
            id & 0xffff, id >> 16, class >> 8, class & 0xff, subsystem >> 16);
        report_bars(fn);
        report_capabilities(fn);
        if (acpi_ecam())
            compared += compare_ways(fn);
    }
    if (acpi_ecam()) {
        struct pci_function none = {0, 31, 7};
        CHECK(ecam_read(none, 0, 4) == port_read(none, 0, 4), "an absent function differs by port and ECAM");
    }
    say("pci functions=%u compared=%u", functions, compared);
}

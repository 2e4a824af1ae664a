/* Where C begins: the start information, then one mode after the other. */
#include "tiny.h"

const struct hvm_start_info *start_info;

static const struct {
    const char *name;
    void (*run)(void);
} modes[] = {
    {"memory", mode_memory},
    {"pci", mode_pci},
    {"blk-writer", mode_blk_writer},
    {"blk-ticks", mode_blk_ticks},
    {"blk-requests", mode_blk_requests},
    {"blk-try", mode_blk_try},
    {"blk-reset", mode_blk_reset},
    {"blk-resize", mode_blk_resize},
    {"fuse", mode_fuse},
    {"dirty", mode_dirty},
    {"ticks", mode_ticks},
    {"echo", mode_echo},
    {"msix", mode_msix},
    {"msix-wait", mode_msix_wait},
    {"reset-cycle", mode_reset_cycle},
    {"reboot", mode_reboot},
    {"smp", mode_smp},
};

static void run_mode(const char *name)
{
    if (streq(name, "hello"))
        return;
    for (u32 i = 0; i < ARRAY_LEN(modes); i++)
        if (streq(modes[i].name, name)) {
            say("start mode=%s", name);
            modes[i].run();
            return;
        }
    fail("no mode %s", name);
}

void tiny_main(const struct hvm_start_info *info)
{
    start_info = info;
    CHECK(info->magic == 0x336ec578, "start info magic %x", info->magic);
    CHECK(info->version >= 1, "start info version %u", info->version);
    args_init((const char *)(u32)info->cmdline);

    int halt = streq(arg_text("end", "off"), "halt");
    const char *mode = arg_text("mode", "hello");
    if (!halt || !streq(mode, "hello")) {
        acpi_init(info->rsdp);
        irq_init();
    }
    /* mode=a+b runs a, then b. */
    for (;;) {
        char name[32];
        u32 length = 0;
        while (mode[length] && mode[length] != '+' && length < sizeof(name) - 1)
            name[length] = mode[length], length++;
        name[length] = 0;
        run_mode(name);
        if (mode[length] != '+')
            break;
        mode += length + 1;
    }
    say("done");
    if (halt)
        for (;;)
            __asm__ volatile("cli; hlt");
    power_off();
}

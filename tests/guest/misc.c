/* The small modes: ticks, resets, other processors. */
#include "blk.h"

/* count= ticks, period= ms apart. timer=lapic sleeps between them, timer=tsc spins. */
void mode_ticks(void)
{
    u32 count = arg("ticks", 10), period = arg("period", 100), begin = now_ms();
    int sleeping = streq(arg_text("timer", "tsc"), "lapic");
    if (sleeping)
        timer_every(period);
    for (u32 i = 0; i < count; i++) {
        if (sleeping) {
            irq_off();
            while (irq_count[VECTOR_TIMER] == 0)
                irq_on_and_sleep(), irq_off();
            irq_count[VECTOR_TIMER] = 0;
            irq_on();
        } else {
            while (now_ms() - begin < (i + 1) * period)
                cpu_relax();
        }
        say("tick n=%u ms=%u", i, now_ms() - begin);
    }
    timer_every(0);
}

/* As ticks, with timer=tsc; and says again what is typed at it, line by line. */
void mode_echo(void)
{
    enum { COM1 = 0x3f8, LINE_STATUS = COM1 + 5, READY = 1 };
    char line[128];
    u32 length = 0, count = arg("ticks", 10), period = arg("period", 100), begin = now_ms();
    for (u32 i = 0; i < count; i++) {
        while (now_ms() - begin < (i + 1) * period) {
            if (!(inb(LINE_STATUS) & READY)) {
                cpu_relax();
                continue;
            }
            char c = inb(COM1);
            if (c != '\n' && length < sizeof(line) - 1) {
                line[length++] = c;
                continue;
            }
            line[length] = 0;
            length = 0;
            say("typed %s", line);
        }
        say("tick n=%u", i);
    }
}

void mode_smp(void)
{
    u32 expected = arg("cpus", 1);
    u32 online = expected > 1 ? smp_start() : 1;
    for (u32 begin = now_ms(); online < expected && now_ms() - begin < 5000;)
        online = aps_online + 1;
    say("smp online=%u", online);
    CHECK(online == expected, "%u processors instead of %u", online, expected);
}

/* Takes the disk down and up again, times= over; each time it has to work, and to remember. */
void mode_reset_cycle(void)
{
    u32 times = arg("times", 5), patience = arg("patience", 0);
    struct setup setup = blk_setup();
    CHECK(virtio_find(&blk.device, VIRTIO_BLK, arg("index", 0)), "no disk");
    for (u32 i = 0; i < times; i++) {
        enum outcome outcome = virtio_start(&blk.device, &setup);
        CHECK(outcome == WORKS, "cycle %u: %s", i, outcome_name(outcome));
        if (i) {
            CHECK(blk_one(BLK_READ, i - 1, patience) == WORKS, "cycle %u: the read failed", i);
            const char *wrong = pattern_check(blk.slots[0][0].data, 128, 5, i - 1);
            CHECK(!wrong, "cycle %u: %s", i, wrong);
        }
        pattern_fill(blk.slots[0][0].data, 128, 5, i);
        CHECK(blk_one(BLK_WRITE, i, patience) == WORKS, "cycle %u: the write failed", i);
        outcome = virtio_reset(&blk.device, patience);
        CHECK(outcome == WORKS, "cycle %u: the reset: %s", i, outcome_name(outcome));
        say("reset-cycle n=%u", i);
    }
}

static void reset_machine(const char *how)
{
    if (streq(how, "acpi"))
        acpi_reset();
    else if (streq(how, "i8042"))
        outb(0x64, 0xfe);
    else if (streq(how, "cf9"))
        outb(0xcf9, 0x02), outb(0xcf9, 0x06);
    else if (streq(how, "triple"))
        triple_fault();
    else
        fail("how=%s", how);
    /* A reset may take a moment. */
    sleep_ms(5000);
    fail("the machine goes on after the reset");
}

/* Resets the machine times= over. RAM does not survive, so the count is kept in sector counter= of disk counter-disk=;
 * without a disk it resets each time it is asked. */
void mode_reboot(void)
{
    const char *how = arg_text("how", "acpi");
    u32 times = arg("times", 1), sector = arg("counter", 0), count = 0;
    struct setup setup = blk_setup();
    u32 *data = blk.slots[0][0].data;
    if (!virtio_find(&blk.device, VIRTIO_BLK, arg("counter-disk", 0))) {
        say("reboot how=%s", how);
        reset_machine(how);
    }
    CHECK(virtio_start(&blk.device, &setup) == WORKS, "the disk does not start");
    CHECK(blk_one(BLK_READ, sector, 0) == WORKS, "the read failed");
    if (!pattern_check(data, 127, 9, 0))
        count = data[127];
    say("reboot count=%u how=%s", count, how);
    if (count >= times)
        return;
    pattern_fill(data, 127, 9, 0);
    data[127] = count + 1;
    CHECK(blk_one(BLK_WRITE, sector, 0) == WORKS, "the write failed");
    if (blk.device.features & BLK_F_FLUSH)
        CHECK(blk_one(BLK_FLUSH, 0, 0) == WORKS, "the flush failed");
    reset_machine(how);
}

/* Masked vectors: events wait, show in the PBA, and arrive exactly once when unmasked. */
#include "blk.h"

static struct queue *queue;

static u32 arrived(void) { return queue_interrupts(&blk.device, queue); }

/* Sends one read and spins until the used ring shows it. */
static void request_polled(void)
{
    blk_submit(0, 0, BLK_READ, 0);
    queue_kick(queue);
    while (queue->used.index == queue->seen)
        cpu_relax();
    CHECK(queue_take(queue) == 0, "an element came back that was not sent");
    CHECK(!blk.slots[0][0].status, "status %u", blk.slots[0][0].status);
}

static void expect_arrivals(u32 expected, const char *when)
{
    for (u32 begin = now_ms(); arrived() != expected && now_ms() - begin < 5000;)
        cpu_relax();
    sleep_ms(5); /* one too many would come now */
    CHECK(arrived() == expected, "%s: %u interrupts instead of %u", when, arrived(), expected);
}

static void expect_pending(int expected, const char *when)
{
    for (u32 begin = now_ms(); msix_is_pending(&blk.device, queue->msix_entry) != expected && now_ms() - begin < 5000;)
        cpu_relax();
    CHECK(msix_is_pending(&blk.device, queue->msix_entry) == expected, "%s: the PBA bit is %u", when, !expected);
}

static void mask(int whole_function, int masked)
{
    if (whole_function)
        msix_function_mask(&blk.device, masked);
    else
        blk.device.table[queue->msix_entry].control = masked ? MSIX_MASKED : 0;
}

static void masked_round(int whole_function)
{
    const char *how = whole_function ? "function mask" : "vector mask";
    u32 before = arrived();
    mask(whole_function, 1);
    request_polled();
    request_polled();
    expect_pending(1, how);
    expect_arrivals(before, how);
    mask(whole_function, 0);
    expect_arrivals(before + 1, how);
    expect_pending(0, how);
    /* Nothing happened meanwhile: nothing comes. */
    mask(whole_function, 1);
    mask(whole_function, 0);
    expect_arrivals(before + 1, how);
}

/* A vector that is changed while masked: the waiting event takes the new way. */
static void retarget(void)
{
    volatile struct msix_entry *entry = &blk.device.table[queue->msix_entry];
    u32 old = entry->data, other = VECTOR_MSIX + 16, before = irq_count[other], before_old = irq_count[old];
    entry->control = MSIX_MASKED;
    request_polled();
    expect_pending(1, "retarget");
    entry->data = other;
    entry->control = 0;
    expect_arrivals(before + 1, "retarget");
    CHECK(irq_count[old] == before_old, "retarget: the old vector was raised");
    entry->data = old;
}

/* Masks and unmasks while requests are in flight; a lost interrupt would leave the processor asleep. */
static void under_load(u32 rounds, u32 depth)
{
    u32 chance = 1, finished = 0;
    for (u32 round = 0; round < rounds; round++) {
        for (u32 i = 0; i < depth; i++)
            blk_submit(0, i, BLK_READ, i);
        queue_kick(queue);
        for (u32 waiting = depth; waiting;) {
            chance = chance * 1664525 + 1013904223;
            if (chance >> 31) {
                int whole_function = chance >> 30 & 1;
                mask(whole_function, 1);
                for (u32 spin = chance >> 16 & 0xff; spin; spin--)
                    cpu_relax();
                mask(whole_function, 0);
            }
            queue_wait(&blk.device, queue, 0);
            for (s32 head = queue_take(queue); head >= 0; head = queue_take(queue), waiting--, finished++)
                CHECK(!blk.slots[0][head / 3].status, "status %u", blk.slots[0][head / 3].status);
        }
    }
    say("msix load finished=%u", finished);
}

void mode_msix(void)
{
    struct setup setup = blk_setup();
    u32 rounds = arg("rounds", 20);
    virtio_open(&blk.device, VIRTIO_BLK, &setup);
    queue = &blk.device.queues[0];
    /* A back-end may signal once when it gets the queue. */
    CHECK(blk_one(BLK_READ, 0, 0) == WORKS, "the first request failed");
    sleep_ms(20);

    for (u32 i = 0; i < rounds; i++) {
        u32 before = arrived();
        CHECK(blk_one(BLK_READ, 0, 0) == WORKS, "request %u failed", i);
        expect_arrivals(before + 1, "unmasked");
    }
    say("msix unmasked=%u", rounds);
    for (u32 i = 0; i < rounds; i++)
        masked_round(i & 1);
    say("msix masked=%u", rounds);
    retarget();
    say("msix retargeted=1");
    under_load(rounds * 5, arg("depth", 8));

    setup.polled = 1;
    CHECK(virtio_start(&blk.device, &setup) == WORKS, "the device does not start again");
    u32 vector = VECTOR_MSIX + 1, before = irq_count[vector];
    for (u32 i = 0; i < rounds; i++)
        request_polled();
    sleep_ms(5);
    CHECK(irq_count[vector] == before, "an interrupt without a vector");
    say("msix polled=%u", rounds);
}

/* Waits until the host gives the disk another size: the sign to go on, which takes no request and no interrupt. */
static void wait_for_sign(void)
{
    for (u64 before = blk_capacity(); blk_capacity() == before;)
        cpu_relax();
}

/* An interrupt is raised that does not get through, and waits; the host does what it wants (a snapshot); then it is let
 * through, and has to arrive. how names what holds it back: vector, function (their mask bits),
 * retarget (the vector's mask; meanwhile the vector is changed), cli (the processor). */
static void wait_with(const char *how)
{
    volatile struct msix_entry *entry = &blk.device.table[queue->msix_entry];
    int whole_function = streq(how, "function"), closed = streq(how, "cli"), retargets = streq(how, "retarget");
    CHECK(whole_function || closed || retargets || streq(how, "vector"), "how=%s", how);
    u32 old = entry->data, other = VECTOR_MSIX + 16;
    u32 target = retargets ? other : old, before_old = irq_count[old], before = irq_count[target];
    if (closed)
        irq_off();
    else
        mask(whole_function, 1);
    request_polled();
    if (!closed) {
        request_polled();
        expect_pending(1, how);
    }
    say("msix-wait how=%s", how);
    wait_for_sign();
    if (!closed)
        expect_pending(1, how);
    CHECK(irq_count[old] == before_old, "%s: %u interrupts got through", how, irq_count[old] - before_old);
    if (retargets)
        entry->data = target;
    if (closed)
        irq_on();
    else
        mask(whole_function, 0);
    for (u32 begin = now_ms(); irq_count[target] == before && now_ms() - begin < 5000;)
        cpu_relax();
    /* A device that begins anew may interrupt once more than needed. */
    CHECK(irq_count[target] > before, "%s: the interrupt is lost", how);
    CHECK(!retargets || irq_count[old] == before_old, "%s: the old vector was raised", how);
    if (!closed)
        expect_pending(0, how);
    entry->data = old;
    say("msix-waited how=%s", how);
}

void mode_msix_wait(void)
{
    static const char *const all[] = {"vector", "function", "retarget", "cli"};
    struct setup setup = blk_setup();
    virtio_open(&blk.device, VIRTIO_BLK, &setup);
    queue = &blk.device.queues[0];
    CHECK(blk_one(BLK_READ, 0, 0) == WORKS, "the first request failed");
    sleep_ms(20);
    for (u32 i = 0; i < ARRAY_LEN(all); i++)
        wait_with(all[i]);
    /* And ordinary ones arrive as before. */
    for (u32 i = 0; i < 20; i++)
        CHECK(blk_one(BLK_READ, 0, 0) == WORKS, "request %u failed", i);
    say("msix-wait requests=20");
}

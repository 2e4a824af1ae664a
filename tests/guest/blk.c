/* virtio-blk: a writer that keeps several numbered records in flight, a reader that checks them. */
#include "blk.h"

struct blk blk;

struct setup blk_setup(void)
{
    struct setup setup = {BLK_F_RO | BLK_F_FLUSH, arg("queues", 1), arg("poll", 0), 0, arg("patience", 0)};
    if (setup.queues > 1)
        setup.features |= BLK_F_MQ;
    return setup;
}

u64 blk_capacity(void)
{
    volatile u32 *config = (volatile u32 *)blk.device.config;
    CHECK(config, "the disk has no configuration space");
    return (u64)config[1] << 32 | config[0];
}

void blk_submit(u32 queue, u32 index, u32 type, u32 sector)
{
    struct blk_slot *slot = &blk.slots[queue][index];
    slot->header.type = type;
    slot->header.reserved = 0;
    slot->header.sector = sector;
    slot->status = 0xff;
    slot->busy = 1;
    struct buffer buffers[3] = {
        {&slot->header, sizeof(slot->header), 0},
        {slot->data, sizeof(slot->data), type == BLK_READ},
        {(const void *)&slot->status, 1, 1},
    };
    u32 count = 3;
    if (type == BLK_FLUSH)
        buffers[1] = buffers[2], count = 2;
    queue_put(&blk.device.queues[queue], index * 3, buffers, count);
}

enum outcome blk_one(u32 type, u32 sector, u32 patience_ms)
{
    struct queue *queue = &blk.device.queues[0];
    blk_submit(0, 0, type, sector);
    queue_kick(queue);
    enum outcome outcome = queue_wait(&blk.device, queue, patience_ms);
    if (outcome != WORKS)
        return outcome;
    CHECK(queue_take(queue) == 0, "an element came back that was not sent");
    blk.slots[0][0].busy = 0;
    return blk.slots[0][0].status ? REFUSED : WORKS;
}

/* --- Records --- */

struct job { u32 type, count, depth, queues, seed, start, patience, report, pace, blank; };
struct progress { u32 sent, finished, in_flight; };

static void finish(const struct job *job, u32 q, s32 head, struct progress *progress)
{
    u32 index = (u32)head / 3;
    CHECK(head >= 0 && head % 3 == 0 && index < job->depth, "element %u came back that was not sent", (u32)head);
    struct blk_slot *slot = &blk.slots[q][index];
    CHECK(slot->busy, "element %u came back twice", (u32)head);
    CHECK(!slot->status, "record %u: status %u", slot->number, slot->status);
    if (job->type == BLK_READ) {
        const char *wrong = pattern_check(slot->data, 128, job->seed, slot->number);
        CHECK(!wrong, "record %u: %s", slot->number, wrong);
    }
    slot->busy = 0;
    progress->in_flight--;
    progress->finished++;
    if (job->report && progress->finished % job->report == 0)
        say("blk %s=%u", job->type == BLK_READ ? "verified" : "written", progress->finished);
}

/* Fills every free slot of a queue and rings once; 0 if there was nothing to send. */
static u32 send(const struct job *job, u32 q, struct progress *progress)
{
    u32 sent = 0;
    for (u32 i = 0; i < job->depth && progress->sent < job->count; i++) {
        struct blk_slot *slot = &blk.slots[q][i];
        if (slot->busy)
            continue;
        slot->number = progress->sent++;
        if (job->blank)
            ;
        else if (job->type == BLK_WRITE)
            pattern_fill(slot->data, 128, job->seed, slot->number);
        else
            memset(slot->data, 0xee, sizeof(slot->data));
        blk_submit(q, i, job->type, job->start + slot->number);
        progress->in_flight++;
        sent++;
    }
    if (sent)
        queue_kick(&blk.device.queues[q]);
    return sent;
}

static enum outcome run(const struct job *job)
{
    struct progress progress = {0, 0, 0};
    u32 q = 0;
    memset(blk.slots, 0, job->queues * sizeof(blk.slots[0]));
    while (progress.finished < job->count) {
        for (u32 i = 0; i < job->queues; i++)
            send(job, i, &progress);
        /* The queues take turns; one without requests is passed over. */
        struct queue *queue = &blk.device.queues[q];
        if (queue->available.index != queue->seen) {
            enum outcome outcome = queue_wait(&blk.device, queue, job->patience);
            if (outcome != WORKS) {
                say("blk outcome=%s finished=%u in-flight=%u status=%x", outcome_name(outcome), progress.finished,
                    progress.in_flight, blk.device.common->device_status);
                return outcome;
            }
            for (s32 head = queue_take(queue); head >= 0; head = queue_take(queue))
                finish(job, q, head, &progress);
        }
        q = (q + 1) % job->queues;
        if (job->pace)
            doze_ms(job->pace);
    }
    return WORKS;
}

static struct job job_from_args(void)
{
    struct job job = {BLK_WRITE, arg("count", 100), arg("depth", 4), blk.device.queue_count, arg("seed", 1),
                      arg("start", 0), arg("patience", 0), arg("report", 0), arg("pace", 0), 0};
    u32 most = blk.device.queues[0].size / 3;
    if (most > BLK_DEPTH)
        most = BLK_DEPTH;
    if (job.depth > most)
        job.depth = most;
    CHECK(blk_capacity() >= (u64)job.start + job.count, "the disk has only %U sectors", blk_capacity());
    return job;
}

/* Ticks without a break, with depth= requests in flight wherever the disk is slower than that. What they write is blank: to fill it
 * would take longer than all the rest, and is not what anybody measures. */
void mode_blk_ticks(void)
{
    struct setup setup = blk_setup();
    virtio_open(&blk.device, VIRTIO_BLK, &setup);
    struct job job = job_from_args();
    job.blank = 1;
    struct progress progress = {0, 0, 0};
    struct queue *queue = &blk.device.queues[0];
    for (u32 i = 0; progress.finished < job.count; i++) {
        send(&job, 0, &progress);
        say("tick n=%u in-flight=%u", i, progress.in_flight);
        for (s32 head = queue_take(queue); head >= 0; head = queue_take(queue))
            finish(&job, 0, head, &progress);
    }
}

/* op=write+verify (default), op=write, op=verify. With patience=ms a device that stops answering is reported
 * and is no failure. With pace=ms it sleeps so long after each batch. */
void mode_blk_writer(void)
{
    struct setup setup = blk_setup();
    virtio_open(&blk.device, VIRTIO_BLK, &setup);
    struct job job = job_from_args();
    const char *op = arg_text("op", "write+verify");
    say("blk sectors=%U read-only=%u flush=%u queues=%u depth=%u offered=%X", blk_capacity(),
        !!(blk.device.features & BLK_F_RO), !!(blk.device.features & BLK_F_FLUSH), job.queues, job.depth,
        blk.device.offered);
    if (!streq(op, "verify")) {
        if (run(&job) != WORKS)
            return;
        if (blk.device.features & BLK_F_FLUSH)
            CHECK(blk_one(BLK_FLUSH, 0, job.patience) == WORKS, "the flush failed");
        say("blk written=%u", job.count);
    }
    if (!streq(op, "write")) {
        job.type = BLK_READ;
        if (run(&job) != WORKS)
            return;
        say("blk verified=%u", job.count);
    }
    u32 interrupts = 0;
    for (u32 i = 0; i < job.queues && !setup.polled; i++)
        interrupts += queue_interrupts(&blk.device, &blk.device.queues[i]);
    say("blk interrupts=%u", interrupts);
}

/* Reads one sector again and again. */
void mode_blk_requests(void)
{
    struct setup setup = blk_setup();
    virtio_open(&blk.device, VIRTIO_BLK, &setup);
    u32 count = arg("count", 10000), sector = arg("start", 0);
    say("blk begin=%u", count);
    for (u32 i = 0; i < count; i++)
        CHECK(blk_one(BLK_READ, sector, 0) == WORKS, "request %u failed", i);
    say("blk requests=%u", count);
}

/* One record written and read back; whatever happens is reported, and nothing is a failure. */
void mode_blk_try(void)
{
    u32 patience = arg("patience", 5000);
    struct setup setup = blk_setup();
    setup.patience_ms = patience;
    enum outcome outcome = NO_DEVICE;
    if (virtio_find(&blk.device, VIRTIO_BLK, arg("index", 0)))
        outcome = virtio_start(&blk.device, &setup);
    u8 status = 0xff;
    if (outcome == WORKS) {
        pattern_fill(blk.slots[0][0].data, 128, 1, 1);
        outcome = blk_one(BLK_WRITE, 0, patience);
    }
    if (outcome == WORKS) {
        memset(blk.slots[0][0].data, 0, 512);
        outcome = blk_one(BLK_READ, 0, patience);
    }
    if (outcome == WORKS && pattern_check(blk.slots[0][0].data, 128, 1, 1))
        fail("what was read is not what was written");
    if (outcome != NO_DEVICE)
        status = blk.device.common->device_status;
    say("blk-try outcome=%s status=%x offered=%X", outcome_name(outcome), status, blk.device.offered);
}

/* Resets the disk that the mode before has used. */
void mode_blk_reset(void)
{
    CHECK(blk.device.common, "no disk has been used");
    enum outcome outcome = virtio_reset(&blk.device, arg("patience", 5000));
    say("blk-reset outcome=%s status=%x", outcome_name(outcome), blk.device.common->device_status);
}

/* Waits until the disk says that it has another size. */
void mode_blk_resize(void)
{
    struct setup setup = blk_setup();
    virtio_open(&blk.device, VIRTIO_BLK, &setup);
    u64 before = blk_capacity();
    volatile u32 *changes = &irq_count[VECTOR_MSIX];
    u32 seen = *changes;
    say("blk-resize sectors=%U generation=%u", before, blk.device.common->config_generation);
    while (blk_capacity() == before) {
        irq_off();
        if (*changes == seen)
            irq_on_and_sleep();
        irq_on();
        seen = *changes;
    }
    say("blk-resized sectors=%U generation=%u interrupts=%u", blk_capacity(), blk.device.common->config_generation, *changes);
}

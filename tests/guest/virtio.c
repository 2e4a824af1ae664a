/* Driving a virtio-pci device. */
#include "virtio.h"

static volatile void *map_bar(struct pci_function fn, u8 index, u32 offset)
{
    struct pci_bar bar = pci_bar(fn, index);
    CHECK(bar.size && bar.base, "function %u.%u has no BAR %u", fn.device, fn.function, index);
    CHECK(!(bar.base >> 32), "BAR %u of function %u.%u lies at %X, out of reach", index, fn.device, fn.function, bar.base);
    return (volatile void *)((u32)bar.base + offset);
}

static void map_structures(struct device *device)
{
    struct pci_function fn = device->fn;
    for (u8 at = pci_capability(fn, PCI_CAP_VENDOR, 0); at; at = pci_capability(fn, PCI_CAP_VENDOR, at)) {
        u8 type = pci_read(fn, at + 3, 1);
        if (type < 1 || type > 4)
            continue;
        volatile void *where = map_bar(fn, pci_read(fn, at + 4, 1), pci_read(fn, at + 8, 4));
        switch (type) {
        case 1: device->common = where; break;
        case 2:
            device->notify = where;
            device->notify_multiplier = pci_read(fn, at + 16, 4);
            break;
        case 3: device->isr = where; break;
        case 4: device->config = where; break;
        }
    }
    CHECK(device->common && device->notify && device->isr, "function %u.%u is no modern virtio device", fn.device, fn.function);
    device->msix = pci_capability(fn, PCI_CAP_MSIX, 0);
    CHECK(device->msix, "function %u.%u has no MSI-X", fn.device, fn.function);
    u32 table = pci_read(fn, device->msix + 4, 4), pending = pci_read(fn, device->msix + 8, 4);
    device->table = map_bar(fn, table & 7, table & ~7u);
    device->pending = map_bar(fn, pending & 7, pending & ~7u);
}

int virtio_find(struct device *device, u16 type, u32 nth)
{
    memset(device, 0, sizeof(*device));
    for (struct pci_function fn = {0, 0, 0}; pci_next(&fn); fn.function++) {
        if (pci_read(fn, 0, 4) != (0x1af4u | (0x1040u + type) << 16) || nth--)
            continue;
        device->fn = fn;
        pci_write(fn, PCI_COMMAND, 2, pci_read(fn, PCI_COMMAND, 2) | 6); /* memory, bus master */
        map_structures(device);
        return 1;
    }
    return 0;
}

enum outcome virtio_reset(struct device *device, u32 patience_ms)
{
    u32 begin = patience_ms ? now_ms() : 0;
    device->common->device_status = 0;
    while (device->common->device_status != 0) {
        if (patience_ms && now_ms() - begin > patience_ms)
            return STALLED;
        cpu_relax();
    }
    return WORKS;
}

static u64 offered(volatile struct virtio_common *common)
{
    common->device_feature_select = 0;
    u32 low = common->device_feature;
    common->device_feature_select = 1;
    return (u64)common->device_feature << 32 | low;
}

static void accept(volatile struct virtio_common *common, u64 features)
{
    common->driver_feature_select = 0;
    common->driver_feature = features;
    common->driver_feature_select = 1;
    common->driver_feature = features >> 32;
}

static void msix_start(struct device *device, u8 vector_base)
{
    u16 control = pci_read(device->fn, device->msix + 2, 2);
    u32 entries = (control & 0x7ff) + 1;
    for (u32 i = 0; i < entries && i <= MAX_QUEUES; i++) {
        volatile struct msix_entry *entry = &device->table[i];
        entry->address_low = 0xfee00000;
        entry->address_high = 0;
        entry->data = VECTOR_MSIX + vector_base + i;
        entry->control = 0;
    }
    pci_write(device->fn, device->msix + 2, 2, (control & ~0x4000) | 0x8000);
}

static void queue_start(struct device *device, u16 index, int polled)
{
    struct queue *queue = &device->queues[index];
    volatile struct virtio_common *common = device->common;
    memset(queue, 0, sizeof(*queue));
    common->queue_select = index;
    u16 most = common->queue_size;
    CHECK(most, "queue %u is not there", index);
    queue->index = index;
    queue->size = most < QUEUE_SIZE ? most : QUEUE_SIZE;
    queue->doorbell = (volatile u16 *)(device->notify + common->queue_notify_off * device->notify_multiplier);
    queue->msix_entry = polled ? NO_VECTOR : 1 + index;
    common->queue_size = queue->size;
    common->queue_msix_vector = queue->msix_entry;
    CHECK(common->queue_msix_vector == queue->msix_entry, "queue %u does not take its vector", index);
    common->queue_desc[0] = (u32)queue->descriptors;
    common->queue_desc[1] = 0;
    common->queue_driver[0] = (u32)&queue->available;
    common->queue_driver[1] = 0;
    common->queue_device[0] = (u32)&queue->used;
    common->queue_device[1] = 0;
    common->queue_enable = 1;
}

enum outcome virtio_start(struct device *device, const struct setup *setup)
{
    volatile struct virtio_common *common = device->common;
    if (virtio_reset(device, setup->patience_ms) != WORKS)
        return STALLED;
    common->device_status = STATUS_ACKNOWLEDGE;
    common->device_status = STATUS_ACKNOWLEDGE | STATUS_DRIVER;
    u64 features = offered(common);
    if (!(features & F_VERSION_1))
        return REFUSED;
    device->offered = features;
    device->features = features & (setup->features | F_VERSION_1);
    accept(common, device->features);
    u8 status = STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK;
    common->device_status = status;
    if (!(common->device_status & STATUS_FEATURES_OK))
        return REFUSED;

    msix_start(device, setup->vector_base);
    common->config_msix_vector = 0;
    CHECK(setup->queues <= MAX_QUEUES && setup->queues <= common->num_queues, "only %u queues", common->num_queues);
    for (u16 i = 0; i < setup->queues; i++)
        queue_start(device, i, setup->polled);
    device->queue_count = setup->queues;
    common->device_status = status | STATUS_DRIVER_OK;
    return common->device_status & STATUS_NEEDS_RESET ? NEEDS_RESET : WORKS;
}

void virtio_open(struct device *device, u16 type, const struct setup *setup)
{
    CHECK(virtio_find(device, type, arg("index", 0)), "no virtio device of type %u", type);
    enum outcome outcome = virtio_start(device, setup);
    CHECK(outcome == WORKS, "virtio device of type %u: %s, status %x", type, outcome_name(outcome),
          device->common->device_status);
}

const char *outcome_name(enum outcome outcome)
{
    static const char *const names[] = {"works", "stalled", "needs-reset", "no-device", "refused"};
    return names[outcome];
}

/* --- Rings --- */

void queue_put(struct queue *queue, u16 first, const struct buffer *buffers, u32 count)
{
    for (u32 i = 0; i < count; i++) {
        struct descriptor *d = &queue->descriptors[first + i];
        d->address = (u32)buffers[i].address;
        d->length = buffers[i].length;
        d->flags = (buffers[i].writable ? DESC_WRITE : 0) | (i + 1 < count ? DESC_NEXT : 0);
        d->next = first + i + 1;
    }
    u16 index = queue->available.index;
    queue->available.ring[index & (queue->size - 1)] = first;
    barrier();
    queue->available.index = index + 1;
}

void queue_kick(struct queue *queue)
{
    barrier();
    if (!(queue->used.flags & 1)) /* VIRTQ_USED_F_NO_NOTIFY */
        *queue->doorbell = queue->index;
}

s32 queue_take(struct queue *queue)
{
    if (queue->used.index == queue->seen)
        return -1;
    barrier();
    return queue->used.ring[queue->seen++ & (queue->size - 1)].id;
}

enum outcome queue_wait(struct device *device, struct queue *queue, u32 patience_ms)
{
    u32 begin = 0, ticks = irq_count[VECTOR_TIMER];
    enum outcome outcome = WORKS;
    if (patience_ms) {
        begin = now_ms();
        timer_every(patience_ms < 1000 ? 10 : 50);
    }
    while (queue->used.index == queue->seen) {
        if (patience_ms && (queue->msix_entry == NO_VECTOR || irq_count[VECTOR_TIMER] != ticks)) {
            ticks = irq_count[VECTOR_TIMER];
            if (device->common->device_status & STATUS_NEEDS_RESET)
                outcome = NEEDS_RESET;
            else if (now_ms() - begin > patience_ms)
                outcome = STALLED;
            if (outcome != WORKS)
                break;
        }
        if (queue->msix_entry == NO_VECTOR) {
            cpu_relax();
            continue;
        }
        irq_off();
        if (queue->used.index == queue->seen)
            irq_on_and_sleep();
        irq_on();
    }
    if (patience_ms)
        timer_every(0);
    return outcome;
}

/* --- MSI-X --- */

void msix_function_mask(struct device *device, int masked)
{
    u16 control = pci_read(device->fn, device->msix + 2, 2) & ~0x4000;
    pci_write(device->fn, device->msix + 2, 2, control | (masked ? 0x4000 : 0));
}

int msix_is_pending(struct device *device, u16 entry) { return device->pending[entry / 32] >> (entry % 32) & 1; }

u32 queue_interrupts(const struct device *device, const struct queue *queue)
{
    return irq_count[device->table[queue->msix_entry].data];
}

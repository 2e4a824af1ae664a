/* A virtio-pci driver (Virtual I/O Device 1.2): modern, split rings, MSI-X. */
#pragma once
#include "pci.h"

enum { VIRTIO_BLK = 2, VIRTIO_FS = 26 };
enum { STATUS_ACKNOWLEDGE = 1, STATUS_DRIVER = 2, STATUS_DRIVER_OK = 4, STATUS_FEATURES_OK = 8,
       STATUS_NEEDS_RESET = 64, STATUS_FAILED = 128 };
enum { MAX_QUEUES = 4, QUEUE_SIZE = 128, NO_VECTOR = 0xffff };
#define F_VERSION_1 (1ull << 32)

struct virtio_common {
    u32 device_feature_select, device_feature, driver_feature_select, driver_feature;
    u16 config_msix_vector, num_queues;
    u8 device_status, config_generation;
    u16 queue_select, queue_size, queue_msix_vector, queue_enable, queue_notify_off;
    u32 queue_desc[2], queue_driver[2], queue_device[2];
};

struct descriptor { u64 address; u32 length; u16 flags, next; };
enum { DESC_NEXT = 1, DESC_WRITE = 2 };
struct available { u16 flags, index, ring[QUEUE_SIZE], used_event; };
struct used_element { u32 id, length; };
struct used { u16 flags, index; struct used_element ring[QUEUE_SIZE]; u16 avail_event; };

struct queue {
    struct descriptor descriptors[QUEUE_SIZE] __attribute__((aligned(4096)));
    volatile struct available available __attribute__((aligned(4096)));
    volatile struct used used __attribute__((aligned(4096)));
    volatile u16 *doorbell;
    u16 index, size, seen;
    u16 msix_entry; /* NO_VECTOR: polled */
};

struct msix_entry { u32 address_low, address_high, data, control; };

struct device {
    struct queue queues[MAX_QUEUES];
    struct pci_function fn;
    volatile struct virtio_common *common;
    volatile u8 *config, *isr, *notify;
    u32 notify_multiplier;
    u8 msix; /* offset of the capability */
    volatile struct msix_entry *table;
    volatile u32 *pending;
    u64 offered, features;
    u16 queue_count;
};

/* How a driver wants its device. */
struct setup {
    u64 features;    /* beside VERSION_1, if offered */
    u16 queues;
    u8 polled;       /* no vector for the queues */
    u8 vector_base;  /* MSI-X entry n raises VECTOR_MSIX + vector_base + n */
    u32 patience_ms; /* 0: wait for ever */
};

enum outcome { WORKS, STALLED, NEEDS_RESET, NO_DEVICE, REFUSED };
const char *outcome_name(enum outcome outcome);

/* Finds the nth device of a type. 0 if there is none; fails if it cannot be driven. */
int virtio_find(struct device *device, u16 type, u32 nth);
/* Writes 0 to the status and waits until it reads 0. */
enum outcome virtio_reset(struct device *device, u32 patience_ms);
/* Reset, features, vectors, queues, DRIVER_OK. */
enum outcome virtio_start(struct device *device, const struct setup *setup);
/* virtio_find and virtio_start, or fail. */
void virtio_open(struct device *device, u16 type, const struct setup *setup);

/* One buffer of a chain. */
struct buffer { const void *address; u32 length; u8 writable; };
/* Puts a chain into descriptors from `first` on and makes it available; the device is not told. */
void queue_put(struct queue *queue, u16 first, const struct buffer *buffers, u32 count);
void queue_kick(struct queue *queue);
/* The next used element, or -1. */
s32 queue_take(struct queue *queue);
/* Sleeps, or spins if polled, until something is used. */
enum outcome queue_wait(struct device *device, struct queue *queue, u32 patience_ms);

enum { MSIX_MASKED = 1 };
void msix_function_mask(struct device *device, int masked);
int msix_is_pending(struct device *device, u16 entry);
/* How many interrupts a queue has raised. */
u32 queue_interrupts(const struct device *device, const struct queue *queue);

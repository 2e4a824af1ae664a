/* Requests to a virtio-blk device. */
#pragma once
#include "virtio.h"

enum { BLK_READ = 0, BLK_WRITE = 1, BLK_FLUSH = 4 };
enum { BLK_DEPTH = QUEUE_SIZE / 3, BLK_IOERR = 1 };
#define BLK_F_RO (1ull << 5)
#define BLK_F_FLUSH (1ull << 9)
#define BLK_F_MQ (1ull << 12)

struct blk_slot {
    struct { u32 type, reserved; u64 sector; } header;
    volatile u8 status;
    u8 busy;
    u32 number;
    u32 data[128];
};

struct blk {
    struct device device;
    struct blk_slot slots[MAX_QUEUES][BLK_DEPTH];
};

extern struct blk blk;

/* The set-up that the command line asks for: queues=, poll=, patience=. */
struct setup blk_setup(void);
u64 blk_capacity(void);
/* Makes a request available; the slot must be free. */
void blk_submit(u32 queue, u32 slot, u32 type, u32 sector);
/* Sends one request on queue 0 and waits for it. */
enum outcome blk_one(u32 type, u32 sector, u32 patience_ms);

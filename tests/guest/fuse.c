/* virtio-fs: a file made, written, looked up, opened, read back (FUSE protocol 7.31). */
#include "virtio.h"

enum { LOOKUP = 1, OPEN = 14, READ = 15, WRITE = 16, RELEASE = 18, INIT = 26, CREATE = 35 };
enum { ROOT_INODE = 1, O_RDONLY = 0, O_RDWR = 2, NEGATIVE_ENOENT = -2, MOST = 4096 };

struct fuse_in { u32 length, opcode; u64 unique, node; u32 uid, gid, pid, padding; };
struct fuse_out { u32 length; s32 error; u64 unique; };
struct fuse_init { u32 major, minor, max_readahead, flags; };
struct fuse_create { u32 flags, mode, umask, open_flags; };
struct fuse_open { u32 flags, open_flags; };
struct fuse_opened { u64 handle; u32 open_flags, padding; };
struct fuse_io { u64 handle, offset; u32 size, io_flags; u64 lock_owner; u32 flags, padding; };
struct fuse_release { u64 handle; u32 flags, release_flags; u64 lock_owner; };

static struct device device;
static struct { struct fuse_in header; u8 arguments[256]; } request;
static struct { struct fuse_out header; u8 results[256]; } reply;
static u32 block[MOST / 4], block_size;
static u64 unique;

/* Sends arguments and, for a write, `out`; receives results and, for a read, `in`. Gives FUSE's error, 0 or negative. */
static s32 call(u32 opcode, u64 node, u32 arguments, const void *out, void *in, u32 data)
{
    request.header = (struct fuse_in){sizeof(request.header) + arguments + (out ? data : 0), opcode, ++unique, node, 0, 0, 1, 0};
    memset(&reply.header, 0xee, sizeof(reply.header));
    struct buffer buffers[4];
    u32 count = 0;
    buffers[count++] = (struct buffer){&request, sizeof(request.header) + arguments, 0};
    if (out)
        buffers[count++] = (struct buffer){out, data, 0};
    /* A read's data follows the header at once. */
    buffers[count++] = (struct buffer){&reply, in ? sizeof(reply.header) : sizeof(reply), 1};
    if (in)
        buffers[count++] = (struct buffer){in, data, 1};
    struct queue *queue = &device.queues[1];
    queue_put(queue, 0, buffers, count);
    queue_kick(queue);
    enum outcome outcome = queue_wait(&device, queue, arg("patience", 0));
    CHECK(outcome == WORKS, "fuse request %u: %s", opcode, outcome_name(outcome));
    CHECK(queue_take(queue) == 0, "an element came back that was not sent");
    CHECK(reply.header.unique == unique, "fuse request %u: a reply to another one", opcode);
    return reply.header.error;
}

static u32 with_name(u32 at, const char *name)
{
    u32 length = strlen(name) + 1;
    memcpy(request.arguments + at, name, length);
    return at + length;
}

static void init(void)
{
    struct fuse_init *in = (struct fuse_init *)request.arguments;
    *in = (struct fuse_init){7, 31, 0, 0};
    s32 error = call(INIT, 0, sizeof(*in), NULL, NULL, 0);
    CHECK(!error, "fuse init: error %u", -error);
    struct fuse_init *out = (struct fuse_init *)reply.results;
    CHECK(out->major == 7, "fuse init: major version %u", out->major);
    say("fuse init major=%u minor=%u", out->major, out->minor);
}

/* The inode's number, 0 if there is no such name. */
static u64 lookup(const char *name)
{
    s32 error = call(LOOKUP, ROOT_INODE, with_name(0, name), NULL, NULL, 0);
    if (error == NEGATIVE_ENOENT)
        return 0;
    CHECK(!error, "fuse lookup: error %u", -error);
    return *(u64 *)reply.results;
}

static u64 create(const char *name)
{
    struct fuse_create *in = (struct fuse_create *)request.arguments;
    *in = (struct fuse_create){O_RDWR, 0100644, 022, 0};
    s32 error = call(CREATE, ROOT_INODE, with_name(sizeof(*in), name), NULL, NULL, 0);
    CHECK(!error, "fuse create: error %u", -error);
    return ((struct fuse_opened *)(reply.results + 128))->handle;
}

static u64 open(u64 node, u32 flags)
{
    struct fuse_open *in = (struct fuse_open *)request.arguments;
    *in = (struct fuse_open){flags, 0};
    s32 error = call(OPEN, node, sizeof(*in), NULL, NULL, 0);
    CHECK(!error, "fuse open: error %u", -error);
    return ((struct fuse_opened *)reply.results)->handle;
}

static void release(u64 node, u64 handle)
{
    struct fuse_release *in = (struct fuse_release *)request.arguments;
    *in = (struct fuse_release){handle, 0, 0, 0};
    s32 error = call(RELEASE, node, sizeof(*in), NULL, NULL, 0);
    CHECK(!error, "fuse release: error %u", -error);
}

static void transfer(u32 opcode, u64 node, u64 handle, u32 number, u32 seed)
{
    struct fuse_io *in = (struct fuse_io *)request.arguments;
    *in = (struct fuse_io){handle, (u64)number * block_size, block_size, 0, 0, O_RDWR, 0};
    s32 error;
    if (opcode == WRITE) {
        pattern_fill(block, block_size / 4, seed, number);
        error = call(WRITE, node, sizeof(*in), block, NULL, block_size);
        CHECK(!error, "fuse write: error %u", -error);
        CHECK(*(u32 *)reply.results == block_size, "fuse write: %u bytes", *(u32 *)reply.results);
        return;
    }
    memset(block, 0xee, sizeof(block));
    error = call(READ, node, sizeof(*in), NULL, block, block_size);
    CHECK(!error, "fuse read: error %u", -error);
    CHECK(reply.header.length == sizeof(reply.header) + block_size, "fuse read: %u bytes", reply.header.length);
    const char *wrong = pattern_check(block, block_size / 4, seed, number);
    CHECK(!wrong, "block %u: %s", number, wrong);
}

/* Writes file= (op=write+verify, op=write) or only reads it (op=verify). blocks= blocks of block= bytes, at most 4 KiB;
 * with pace=ms it sleeps so long after each that it writes. */
void mode_fuse(void)
{
    struct setup setup = {0, 2, arg("poll", 0), 8, arg("patience", 0)};
    const char *name = arg_text("file", "tiny.bin"), *op = arg_text("op", "write+verify");
    u32 count = arg("blocks", 16), seed = arg("seed", 1), report = arg("report", 0), pace = arg("pace", 0);
    block_size = arg("block", MOST);
    CHECK(block_size <= MOST && block_size % 4 == 0, "blocks of %u bytes", block_size);
    virtio_open(&device, VIRTIO_FS, &setup);
    char tag[37];
    for (u32 i = 0; i < 36; i++)
        tag[i] = device.config[i];
    tag[36] = 0;
    say("fuse tag=%s request-queues=%u", tag, *(volatile u32 *)(device.config + 36));
    init();
    u64 node = lookup(name);
    if (!streq(op, "verify")) {
        CHECK(!node, "%s is there already", name);
        u64 handle = create(name);
        node = *(u64 *)reply.results;
        for (u32 i = 0; i < count; i++) {
            transfer(WRITE, node, handle, i, seed);
            if (report && (i + 1) % report == 0)
                say("fuse at=%u", i + 1);
            if (pace)
                doze_ms(pace);
        }
        release(node, handle);
        say("fuse written=%u", count);
        CHECK(lookup(name) == node, "%s has another inode now", name);
    }
    if (!streq(op, "write")) {
        CHECK(node, "%s is not there", name);
        u64 handle = open(node, O_RDONLY);
        for (u32 i = 0; i < count; i++)
            transfer(READ, node, handle, i, seed);
        release(node, handle);
        say("fuse verified=%u", count);
    }
    if (!setup.polled)
        say("fuse interrupts=%u", queue_interrupts(&device, &device.queues[1]));
}

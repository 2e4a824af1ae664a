/* A dirtier of RAM: rate= pages a second, round and round a range, each page numbered, and checked before it is written again
 * (check=1) and at the end. */
#include "tiny.h"

enum { PAGE = 4096, WORDS = 8 };

static u32 from;

/* The words stand apart, at both ends of the page and between, so that half a page is noticed. */
static volatile u32 *word_of(u32 page, u32 word) { return (volatile u32 *)(from + page * PAGE + word * (PAGE - 4) / (WORDS - 1) / 4 * 4); }

static u32 stamp(u32 page, u32 sweep, u32 word) { return (page * 0x9e3779b1u ^ sweep * 0x85ebca6bu) + word; }

static void write_page(u32 page, u32 sweep)
{
    for (u32 i = 0; i < WORDS; i++)
        *word_of(page, i) = stamp(page, sweep, i);
}

static void check_page(u32 page, u32 sweep)
{
    for (u32 i = 0; i < WORDS; i++)
        CHECK(*word_of(page, i) == stamp(page, sweep, i), "page %u: %x instead of %x at word %u, sweep %u", page,
              *word_of(page, i), stamp(page, sweep, i), i, sweep);
}

/* rate= pages a second (0: as many as it can), from= (16M; high=1: behind 4 GiB), pages= in the range, ms= how long. */
void mode_dirty(void)
{
    u32 rate = arg("rate", 1000), pages = arg("pages", 1024), length = arg("ms", 1000), report = arg("report", 1000);
    u32 checks = arg("check", 0);
    u32 high = arg("high", 0);
    from = arg("from", high ? 0 : 16 << 20);
    if (high)
        from += map_above_4g();
    CHECK(rate < 4000000, "rate=%u is too high", rate);
    u32 page = 0, sweep = 1, begin = now_ms(), reported = 0, passed;
    u64 written = 0;
    while ((passed = now_ms() - begin) < length) {
        if (report && passed / report != reported) {
            reported = passed / report;
            say("dirty ms=%u written=%U", passed, written);
        }
        if (rate && written >= div64((u64)passed * rate, 1000, NULL) + 1) {
            cpu_relax();
            continue;
        }
        if (checks && sweep > 1)
            check_page(page, sweep - 1);
        write_page(page, sweep);
        written++;
        if (++page == pages)
            page = 0, sweep++;
    }
    u32 checked = 0;
    for (u32 i = 0; i < pages && i < written; i++, checked++)
        check_page(i, i < page ? sweep : sweep - 1);
    if (high)
        unmap_above_4g();
    say("dirty written=%U checked=%u", written, checked);
}

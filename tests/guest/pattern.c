/* Contents that name themselves: word 0 is a magic number, 1 the seed, 2 the number, the last one a
 * checksum of all before it, and the rest follows from seed and number. */
#include "tiny.h"

#define MAGIC 0x59525246u /* "FRRY" */

static u32 mix(u32 x)
{
    x ^= x >> 16;
    x *= 0x7feb352d;
    x ^= x >> 15;
    return x;
}

static u32 fold(u32 sum, u32 word) { return ((sum << 5 | sum >> 27) ^ word) * 0x9e3779b1u; }

void pattern_fill(u32 *words, u32 count, u32 seed, u32 number)
{
    u32 sum = fold(fold(fold(0, MAGIC), seed), number);
    u32 next = seed * 0x85ebca6b + number * 0x9e3779b9;
    words[0] = MAGIC, words[1] = seed, words[2] = number;
    for (u32 i = 3; i < count - 1; i++) {
        words[i] = mix(next + i);
        sum = fold(sum, words[i]);
    }
    words[count - 1] = sum;
}

const char *pattern_check(const u32 *words, u32 count, u32 seed, u32 number)
{
    if (words[0] != MAGIC)
        return "no magic";
    if (words[1] != seed)
        return "wrong seed";
    if (words[2] != number)
        return "wrong number";
    u32 sum = 0, next = seed * 0x85ebca6b + number * 0x9e3779b9;
    for (u32 i = 0; i < count - 1; i++) {
        if (i >= 3 && words[i] != mix(next + i))
            return "wrong contents";
        sum = fold(sum, words[i]);
    }
    return sum == words[count - 1] ? NULL : "wrong checksum";
}

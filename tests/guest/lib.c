/* What a libc would give: memory, strings, output, arguments. */
#include "tiny.h"

#define COM1 0x3f8

void *memcpy(void *to, const void *from, u32 bytes)
{
    void *start = to;
    u32 words = bytes / 4, rest = bytes % 4;
    __asm__ volatile("rep movsl" : "+D"(to), "+S"(from), "+c"(words)::"memory");
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(rest)::"memory");
    return start;
}

void *memset(void *to, int value, u32 bytes)
{
    void *start = to;
    /* Where instructions are interpreted, each repetition counts. */
    u32 words = bytes / 4, rest = bytes % 4, word = (u8)value * 0x01010101u;
    __asm__ volatile("rep stosl" : "+D"(to), "+c"(words) : "a"(word) : "memory");
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(rest) : "a"(word) : "memory");
    return start;
}

int memcmp(const void *a, const void *b, u32 bytes)
{
    const u8 *x = a, *y = b;
    for (; bytes; bytes--, x++, y++)
        if (*x != *y)
            return *x - *y;
    return 0;
}

u32 strlen(const char *s)
{
    u32 length = 0;
    while (s[length])
        length++;
    return length;
}

int streq(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return *a == *b;
}

u64 div64(u64 dividend, u32 divisor, u32 *rest)
{
    u32 high = dividend >> 32, low = dividend, quotient_high = high / divisor, remainder = high % divisor;
    __asm__("divl %2" : "+a"(low), "+d"(remainder) : "rm"(divisor) : "cc");
    if (rest)
        *rest = remainder;
    return (u64)quotient_high << 32 | low;
}

/* --- Output --- */

/* The transmitter of a virtual UART is never busy, and asking it would cost an exit a byte. */
static void put(char c) { outb(COM1, c); }

static void put_text(const char *s)
{
    while (*s)
        put(*s++);
}

static void put_number(u64 value, u32 base)
{
    char digits[24];
    u32 count = 0, digit;
    do {
        value = div64(value, base, &digit);
        digits[count++] = "0123456789abcdef"[digit];
    } while (value);
    if (base == 16)
        put_text("0x");
    while (count)
        put(digits[--count]);
}

static void put_format(const char *format, __builtin_va_list values)
{
    for (; *format; format++) {
        if (*format != '%') {
            put(*format);
            continue;
        }
        switch (*++format) {
        case 's': put_text(__builtin_va_arg(values, const char *)); break;
        case 'u': put_number(__builtin_va_arg(values, u32), 10); break;
        case 'x': put_number(__builtin_va_arg(values, u32), 16); break;
        case 'U': put_number(__builtin_va_arg(values, u64), 10); break;
        case 'X': put_number(__builtin_va_arg(values, u64), 16); break;
        default: put(*format);
        }
    }
    put('\n');
}

void say(const char *format, ...)
{
    __builtin_va_list values;
    __builtin_va_start(values, format);
    put_text("tiny: ");
    put_format(format, values);
    __builtin_va_end(values);
}

void fail(const char *format, ...)
{
    __builtin_va_list values;
    __builtin_va_start(values, format);
    irq_off();
    put_text("tiny: FAIL ");
    put_format(format, values);
    __builtin_va_end(values);
    power_off();
}

/* --- Arguments --- */

static char words[2048];

void args_init(const char *command_line)
{
    u32 length = strlen(command_line);
    CHECK(length < sizeof(words), "command line of %u bytes", length);
    memcpy(words, command_line, length + 1);
    for (char *c = words; *c; c++)
        if (*c == ' ')
            *c = 0;
    words[length] = 0;
    /* An empty word ends the list; blanks in a row must not. */
    char *to = words;
    for (u32 i = 0; i < length;) {
        u32 size = strlen(words + i) + 1;
        if (size > 1)
            for (u32 j = 0; j < size; j++)
                *to++ = words[i + j];
        i += size;
    }
    *to = 0;
}

const char *arg_text(const char *key, const char *otherwise)
{
    u32 length = strlen(key);
    for (const char *word = words; *word; word += strlen(word) + 1)
        if (!memcmp(word, key, length) && word[length] == '=')
            return word + length + 1;
    return otherwise;
}

u32 arg(const char *key, u32 otherwise)
{
    const char *text = arg_text(key, NULL);
    if (!text)
        return otherwise;
    u32 value = 0, base = 10;
    if (text[0] == '0' && text[1] == 'x')
        base = 16, text += 2;
    for (; *text; text++) {
        if (*text >= '0' && *text <= '9')
            value = value * base + (*text - '0');
        else if (base == 16 && *text >= 'a' && *text <= 'f')
            value = value * base + (*text - 'a' + 10);
        else if (*text == 'K')
            value <<= 10;
        else if (*text == 'M')
            value <<= 20;
        else if (*text == 'G')
            value <<= 30;
        else
            fail("%s= is not a number", key);
    }
    return value;
}

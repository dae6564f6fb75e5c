#include "np_ct.h"

#include <arpa/inet.h>
#include <errno.h>
#include <string.h>

/* What is still to be read of a line: words between spaces. */
struct line {
    const char *at;
    const char *end;
};

struct word {
    const char *at;
    size_t size;
};

/* Takes the next word of a line. Returns 1, or 0 at its end. */
static int next_word(struct line *line, struct word *word)
{
    while (line->at < line->end && *line->at == ' ')
        line->at++;
    word->at = line->at;
    while (line->at < line->end && *line->at != ' ')
        line->at++;
    word->size = (size_t)(line->at - word->at);
    return word->size > 0;
}

/* Drops "name=" from the front of a word. Returns whether it was there. */
static int take_name(struct word *word, const char *name)
{
    const size_t size = strlen(name);

    if (word->size <= size || memcmp(word->at, name, size) != 0 || word->at[size] != '=')
        return 0;
    word->at += size + 1;
    word->size -= size + 1;
    return 1;
}

/* Reads a number of nothing but digits of that base, up to `most`. Returns 0 or -EBADMSG. */
static int get_number(struct word word, unsigned int base, uint64_t most, uint64_t *number)
{
    *number = 0;
    if (word.size == 0)
        return -EBADMSG;
    for (size_t i = 0; i < word.size; i++) {
        const char c = word.at[i];
        const unsigned int digit = c >= '0' && c <= '9'   ? (unsigned int)(c - '0')
                                   : c >= 'a' && c <= 'f' ? (unsigned int)(c - 'a') + 10
                                                          : base;

        if (digit >= base)
            return -EBADMSG;
        *number = *number * base + digit;
        if (*number > most)
            return -EBADMSG;
    }
    return 0;
}

/* Reads the next word as "name=number". Returns 0 or -EBADMSG. */
static int next_number(struct line *line, const char *name, unsigned int base, uint64_t most, uint16_t *number)
{
    struct word word;
    uint64_t found = 0;
    int result = next_word(line, &word) && take_name(&word, name) ? 0 : -EBADMSG;

    if (result == 0 && base == 16) {
        if (word.size < 2 || memcmp(word.at, "0x", 2) != 0)
            return -EBADMSG;
        word.at += 2;
        word.size -= 2;
    }
    if (result == 0)
        result = get_number(word, base, most, &found);
    *number = (uint16_t)found;
    return result;
}

/* Reads an address, into 4 or 16 bytes. Returns 0 or -EBADMSG. */
static int get_address(struct word word, int family, uint8_t *address)
{
    char text[INET6_ADDRSTRLEN];

    if (word.size >= sizeof(text))
        return -EBADMSG;
    memcpy(text, word.at, word.size);
    text[word.size] = '\0';
    return inet_pton(family == 4 ? AF_INET : AF_INET6, text, address) == 1 ? 0 : -EBADMSG;
}

/* Goes on to the next word of this name, over any others. Returns 1, or 0 at the end of the line. */
static int find_name(struct line *line, const char *name, struct word *word)
{
    while (next_word(line, word))
        if (take_name(word, name))
            return 1;
    return 0;
}

/* Reads the numbers behind the addresses of a tuple: ports, keys, ICMP's, or none. Returns 0 or -EBADMSG. */
static int get_numbers(struct line *line, struct np_ct_flow *flow)
{
    const struct line start = *line;
    uint16_t type = 0, code = 0;
    struct word word;

    if (!next_word(line, &word))
        return 0;
    *line = start;
    if (take_name(&word, "sport")) {
        flow->flags |= NP_CT_PORTS;
        if (next_number(line, "sport", 10, UINT16_MAX, &flow->reply.source_port) < 0)
            return -EBADMSG;
        return next_number(line, "dport", 10, UINT16_MAX, &flow->reply.destination_port);
    }
    if (take_name(&word, "srckey")) {
        flow->flags |= NP_CT_PORTS;
        if (next_number(line, "srckey", 16, UINT16_MAX, &flow->reply.source_port) < 0)
            return -EBADMSG;
        return next_number(line, "dstkey", 16, UINT16_MAX, &flow->reply.destination_port);
    }
    if (!take_name(&word, "type"))
        return 0;
    flow->flags |= NP_CT_ICMP;
    if (next_number(line, "type", 10, UINT8_MAX, &type) < 0 || next_number(line, "code", 10, UINT8_MAX, &code) < 0)
        return -EBADMSG;
    flow->reply.destination_port = (uint16_t)(type << 8 | code);
    return next_number(line, "id", 10, UINT16_MAX, &flow->reply.source_port);
}

/* Reads what stands behind the tuples: the zone, unless it is the original direction's only, and the mark. Between the two a security
 * module's label stands, which may hold any words: the first mark counts, and the last zone. Returns 0 or -EBADMSG. */
static int get_rest(struct line *line, struct np_ct_flow *flow)
{
    struct word word;
    uint64_t number = 0;
    int has_mark = 0;

    while (next_word(line, &word)) {
        const int is_reply = take_name(&word, "zone-reply");

        if (is_reply || take_name(&word, "zone")) {
            if (get_number(word, 10, UINT16_MAX, &number) < 0)
                return -EBADMSG;
            flow->zone = (uint16_t)number;
            flow->flags |= is_reply ? NP_CT_ZONE_REPLY : 0;
        } else if (!has_mark && take_name(&word, "mark")) {
            if (get_number(word, 10, UINT32_MAX, &number) < 0)
                return -EBADMSG;
            flow->mark = (uint32_t)number;
            has_mark = 1;
        } else if (take_name(&word, "src")) {
            return -EBADMSG;
        }
    }
    return 0;
}

/* Reads one line: the flow's protocol, its ends, its reply's tuple, zone and mark. Returns 0 or -EBADMSG. */
static int parse_line(struct line *line, struct np_ct_flow *flow)
{
    struct word word;
    uint64_t number = 0;

    if (!next_word(line, &word) || !next_word(line, &word) || get_number(word, 10, UINT8_MAX, &number) < 0)
        return -EBADMSG;
    if (number != AF_INET && number != AF_INET6)
        return -EBADMSG;
    flow->first.family = number == AF_INET ? 4 : 6;
    if (!next_word(line, &word) || !next_word(line, &word) || get_number(word, 10, UINT8_MAX, &number) < 0)
        return -EBADMSG;
    flow->first.protocol = (uint8_t)number;
    if (!find_name(line, "src", &word) || get_address(word, flow->first.family, flow->original.source) < 0)
        return -EBADMSG;
    if (!find_name(line, "src", &word) || get_address(word, flow->first.family, flow->reply.source) < 0)
        return -EBADMSG;
    if (!next_word(line, &word) || !take_name(&word, "dst") ||
        get_address(word, flow->first.family, flow->reply.destination) < 0)
        return -EBADMSG;
    return get_numbers(line, flow) < 0 ? -EBADMSG : get_rest(line, flow);
}

/* Appends to `dump` what the lines of /proc/net/nf_conntrack name of entries that can matter: those with an end among the dump's, or with
 * one of its `bits` or `counted` in their mark. Of each only protocol, ends, the reply's tuple, zone and mark are set. `seen` counts all
 * lines. Returns 0, -ENOSPC where the room is short, or -EBADMSG for a line of another form. */
int np_ct_parse_list(const char *text, size_t size, struct np_ct_dump *dump)
{
    const char *const end = text + size;

    while (text < end) {
        const char *const newline = memchr(text, '\n', (size_t)(end - text));
        struct line line = {text, newline ? newline : end};
        struct np_ct_flow flow = {0};
        size_t width = 0;

        if (parse_line(&line, &flow) < 0)
            return -EBADMSG;
        dump->seen++;
        width = flow.first.family == 4 ? 4 : 16;
        if (np_ct_is_end(dump, flow.original.source, width) || np_ct_is_end(dump, flow.reply.source, width) ||
            flow.mark & (dump->bits | dump->counted)) {
            if (dump->count == dump->room)
                return -ENOSPC;
            /* What changes while the entry lives is none of what it is known by. */
            flow.mark = 0;
            dump->flows[dump->count++] = flow;
        }
        text = newline ? newline + 1 : end;
    }
    return 0;
}

/* A bounded reader of MessagePack, the form in which rules come from Python: maps with text keys, arrays, integers below 2^63,
 * booleans, text and bytes; no nil, for what is None is left out; no floating point and no extensions. The first error sticks: every later read gives 0 or nothing,
 * and it is looked at once, at the end. Everything is read within [at, end). */
#ifndef NP_PACK_H
#define NP_PACK_H

#include <stdint.h>
#include <string.h>

struct np_pack {
    const uint8_t *at;
    const uint8_t *end;
    const uint8_t *key; /* the field that was read last, or is being read */
    uint32_t key_size;
    int error; /* 0, or -EPROTO: another form; -ERANGE: a value that does not fit */
};

struct np_pack_text {
    const uint8_t *at;
    uint32_t size;
};

/* The first bytes of the forms that nearly everything has, which hold their length or value in themselves (msgpack/spec.md). */
enum { NP_FIXMAP = 0x80, NP_FIXARRAY = 0x90, NP_FIXSTR = 0xa0, NP_NIL = 0xc0, NP_UINT16 = 0xcd };

uint32_t np_pack_wide_map(struct np_pack *pack);
uint32_t np_pack_wide_array(struct np_pack *pack);
int64_t np_pack_wide_int(struct np_pack *pack, int64_t low, int64_t high);
struct np_pack_text np_pack_wide_text(struct np_pack *pack);
int np_pack_bool(struct np_pack *pack);
void np_pack_fail(struct np_pack *pack, int error);

/* Enters a map: the number of its pairs. */
static inline uint32_t np_pack_map(struct np_pack *pack)
{
    if (pack->at < pack->end && (*pack->at & 0xf0) == NP_FIXMAP)
        return *pack->at++ & 15;
    return np_pack_wide_map(pack);
}

/* Enters an array: the number of its members. */
static inline uint32_t np_pack_array(struct np_pack *pack)
{
    if (pack->at < pack->end && (*pack->at & 0xf0) == NP_FIXARRAY)
        return *pack->at++ & 15;
    return np_pack_wide_array(pack);
}

/* An integer from `low` to `high`; any other is -ERANGE. */
static inline int64_t np_pack_int(struct np_pack *pack, int64_t low, int64_t high)
{
    const uint8_t *at = pack->at;

    if (at < pack->end && *at < NP_FIXMAP && *at >= low && *at <= high) {
        pack->at++;
        return *at;
    }
    if (pack->end - at > 2 && *at == NP_UINT16 && (at[1] << 8 | at[2]) >= low && (at[1] << 8 | at[2]) <= high) {
        pack->at += 3;
        return at[1] << 8 | at[2];
    }
    return np_pack_wide_int(pack, low, high);
}

/* A text (UTF-8) or bytes; it stays where it is. */
static inline struct np_pack_text np_pack_text(struct np_pack *pack)
{
    const uint8_t *at = pack->at;

    if (at < pack->end && (*at & 0xe0) == NP_FIXSTR && (*at & 31) < pack->end - at) {
        pack->at += 1 + (*at & 31);
        return (struct np_pack_text){.at = at + 1, .size = *at & 31};
    }
    return np_pack_wide_text(pack);
}

/* Reads the next key of a map, and says whether there was one. */
static inline int np_pack_key(struct np_pack *pack)
{
    struct np_pack_text text = np_pack_text(pack);

    if (pack->error)
        return 0;
    pack->key = text.at;
    pack->key_size = text.size;
    return 1;
}

/* Whether the text is `word`. */
static inline int np_pack_same(struct np_pack_text text, const char *word)
{
    return text.size == strlen(word) && memcmp(text.at, word, strlen(word)) == 0;
}

/* Whether the key that was read last is `word`. */
static inline int np_pack_is(const struct np_pack *pack, const char *word)
{
    return pack->key_size == strlen(word) && memcmp(pack->key, word, strlen(word)) == 0;
}

#endif

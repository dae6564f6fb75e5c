/* A bounded reader of MessagePack, the form in which rules come from Python: maps with text keys, arrays, integers below 2^63,
 * booleans, nil, text and bytes; no floating point and no extensions. The first error sticks: every later read gives 0 or nothing,
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

uint32_t np_pack_map(struct np_pack *pack);
uint32_t np_pack_array(struct np_pack *pack);
int64_t np_pack_int(struct np_pack *pack, int64_t low, int64_t high);
int np_pack_bool(struct np_pack *pack);
int np_pack_nil(struct np_pack *pack);
struct np_pack_text np_pack_text(struct np_pack *pack);
int np_pack_key(struct np_pack *pack);
void np_pack_fail(struct np_pack *pack, int error);

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

/* Watches in protobuf, as an API server's or anybody else's bytes (np_pb_lines, np_pb_status).
 *
 * Invariant: whatever the bytes are, nothing is read outside them and no more is written than there is room for: they are lines of whole
 * frames, or refused. A line ends with its newline, has no other and no character below a space, and all of it was set. A second call from
 * where the first one came to, or with room for all, gives the same. */
#include "fuzz.h"
#include "np_pb.h"

#include <errno.h>

enum { MOST = 2048 };

/* Lines of text, each ended; strings in them are strings to the end of their line. */
static void check_text(const char *text, size_t size)
{
    int in_string = 0;

    is_set(text, size);
    HOLDS(size == 0 || text[size - 1] == '\n');
    for (size_t i = 0; i < size; i++) {
        if (text[i] == '\n')
            HOLDS(!in_string && i > 0 && text[i - 1] == '}');
        else
            HOLDS((uint8_t)text[i] >= 0x20);
        if (text[i] == '\\')
            HOLDS(in_string && size - i > 6 && text[i + 1] == 'u');
        else if (text[i] == '"')
            in_string = !in_string;
    }
}

static void check_lines(const uint8_t *data, size_t size, size_t small)
{
    /* A byte takes six at most; an event that is nothing else takes less than a hundred. */
    const size_t all = 6 * size + 100 * (size / 4 + 1);
    struct np_pb whole = {.text = room(all), .room = all}, part = {.text = room(small), .room = small};
    const int code = np_pb_lines(data, size, MOST, &whole);
    size_t at = 0, written = 0;
    int result;

    HOLDS(code == 0 || code == -EBADMSG || code == -EMSGSIZE);
    HOLDS(whole.used <= size && whole.written <= all);
    check_text(whole.text, whole.written);
    do {
        result = np_pb_lines(data + at, size - at, MOST, &part);
        HOLDS(part.written <= small && part.used <= size - at && written + part.written <= whole.written);
        is_set(part.text, part.written);
        HOLDS(part.written == 0 || memcmp(part.text, whole.text + written, part.written) == 0);
        at += part.used;
        written += part.written;
    } while (result == -ENOSPC && part.written > 0);
    HOLDS(result == -ENOSPC || (result == code && at == whole.used && written == whole.written));
    free(whole.text);
    free(part.text);
}

static void check_status(const uint8_t *data, size_t size, size_t small)
{
    struct np_pb whole = {.text = room(6 * size + 100), .room = 6 * size + 100};
    struct np_pb part = {.text = room(small), .room = small};
    const int code = np_pb_status(data, size, &whole), result = np_pb_status(data, size, &part);

    HOLDS(code == 0 || code == -EBADMSG);
    HOLDS(result == code || (code == 0 && result == -ENOSPC));
    if (code == 0) {
        is_set(whole.text, whole.written);
        HOLDS(whole.written > 1 && whole.text[0] == '{' && whole.text[whole.written - 1] == '}');
    }
    if (result == 0)
        HOLDS(part.written == whole.written && memcmp(part.text, whole.text, part.written) == 0);
    free(whole.text);
    free(part.text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    const int is_status = take_byte(&in) & 1;
    const size_t small = 8 * (size_t)take_byte(&in), left = in.left;
    uint8_t *block = take_block(&in, left);

    if (is_status)
        check_status(block, left, small);
    else
        check_lines(block, left, small);
    free(block);
    return 0;
}

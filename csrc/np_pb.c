#include "np_pb.h"

#include <errno.h>
#include <string.h>

/* How a field is encoded (wire types), and what of it is written. */
enum { VARINT = 0, FIXED64 = 1, BYTES = 2, FIXED32 = 5 };
enum kind { TEXT, NUMBER, COUNT, BOOLEAN, MESSAGE, MESSAGES, PAIRS, PRESENCE };

struct message;

struct field {
    uint32_t number;
    enum kind kind;
    const char *name;
    const struct message *inside;
};

/* `front` is what the object of JSON has before its fields. */
struct message {
    const struct field *fields;
    size_t count;
    const char *front;
};

#define OF(list) (list), sizeof(list) / sizeof(*(list))

/* Of k8s.io/api/core/v1 and k8s.io/apimachinery/pkg/apis/meta/v1, generated.proto. Of a deletionTimestamp only that it is there. */
static const struct field PORT_FIELDS[] = {
    {1, TEXT, "name", NULL}, {3, NUMBER, "containerPort", NULL}, {4, TEXT, "protocol", NULL}};
static const struct message PORT = {OF(PORT_FIELDS), NULL};
static const struct field CONTAINER_FIELDS[] = {{6, MESSAGES, "ports", &PORT}, {24, TEXT, "restartPolicy", NULL}};
static const struct message CONTAINER = {OF(CONTAINER_FIELDS), NULL};
static const struct field SPEC_FIELDS[] = {{2, MESSAGES, "containers", &CONTAINER},
                                           {10, TEXT, "nodeName", NULL},
                                           {11, BOOLEAN, "hostNetwork", NULL},
                                           {20, MESSAGES, "initContainers", &CONTAINER}};
static const struct message SPEC = {OF(SPEC_FIELDS), NULL};
static const struct field ADDRESS_FIELDS[] = {{1, TEXT, "ip", NULL}};
static const struct message ADDRESS = {OF(ADDRESS_FIELDS), NULL};
static const struct field POD_STATUS_FIELDS[] = {
    {1, TEXT, "phase", NULL}, {6, TEXT, "podIP", NULL}, {12, MESSAGES, "podIPs", &ADDRESS}};
static const struct message POD_STATUS = {OF(POD_STATUS_FIELDS), NULL};
static const struct field META_FIELDS[] = {{1, TEXT, "name", NULL},
                                           {3, TEXT, "namespace", NULL},
                                           {6, TEXT, "resourceVersion", NULL},
                                           {9, PRESENCE, "deletionTimestamp", NULL},
                                           {11, PAIRS, "labels", NULL}};
static const struct message META = {OF(META_FIELDS), NULL};
static const struct field POD_FIELDS[] = {
    {1, MESSAGE, "metadata", &META}, {2, MESSAGE, "spec", &SPEC}, {3, MESSAGE, "status", &POD_STATUS}};
static const struct message POD = {OF(POD_FIELDS), NULL};
static const struct field BOOKMARK_META_FIELDS[] = {{6, TEXT, "resourceVersion", NULL},
                                                    {12, PAIRS, "annotations", NULL}};
static const struct message BOOKMARK_META = {OF(BOOKMARK_META_FIELDS), NULL};
static const struct field BOOKMARK_FIELDS[] = {{1, MESSAGE, "metadata", &BOOKMARK_META}};
static const struct message BOOKMARK = {OF(BOOKMARK_FIELDS), NULL};
static const struct field DETAILS_FIELDS[] = {{5, COUNT, "retryAfterSeconds", NULL}};
static const struct message DETAILS = {OF(DETAILS_FIELDS), NULL};
static const struct field STATUS_FIELDS[] = {
    {3, TEXT, "message", NULL}, {4, TEXT, "reason", NULL}, {5, MESSAGE, "details", &DETAILS}, {6, COUNT, "code", NULL}};
static const struct message STATUS = {OF(STATUS_FIELDS), "\"kind\":\"Status\""};

/* -- reading -- */

struct in {
    const uint8_t *at;
    const uint8_t *end;
};

/* A field as it comes: `value` of a varint, `body` of bytes. */
struct found {
    uint32_t number;
    uint32_t type;
    uint64_t value;
    struct in body;
};

static size_t left(const struct in *in)
{
    return (size_t)(in->end - in->at);
}

/* Returns 0 or -EBADMSG. */
static int get_varint(struct in *in, uint64_t *value)
{
    *value = 0;
    for (unsigned int shift = 0; shift < 64 && in->at < in->end; shift += 7) {
        const uint8_t byte = *in->at++;

        if (shift == 63 && byte > 1)
            return -EBADMSG;
        *value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80)
            return 0;
    }
    return -EBADMSG;
}

/* Takes so many bytes. Returns 0 or -EBADMSG. */
static int take(struct in *in, uint64_t size, struct in *body)
{
    if (size > left(in))
        return -EBADMSG;
    body->at = in->at;
    body->end = in->at + size;
    in->at = body->end;
    return 0;
}

/* Takes the next field. Returns 1, 0 at the end, or -EBADMSG. */
static int next_field(struct in *in, struct found *found)
{
    uint64_t number = 0;

    if (in->at == in->end)
        return 0;
    *found = (struct found){0};
    if (get_varint(in, &number) < 0 || number >> 3 == 0 || number >> 3 > UINT32_MAX)
        return -EBADMSG;
    found->number = (uint32_t)(number >> 3);
    found->type = number & 7;
    switch (found->type) {
    case VARINT:
        return get_varint(in, &found->value) < 0 ? -EBADMSG : 1;
    case FIXED64:
        return take(in, 8, &found->body) < 0 ? -EBADMSG : 1;
    case BYTES:
        return get_varint(in, &found->value) < 0 || take(in, found->value, &found->body) < 0 ? -EBADMSG : 1;
    case FIXED32:
        return take(in, 4, &found->body) < 0 ? -EBADMSG : 1;
    default: /* groups, which nobody writes any more */
        return -EBADMSG;
    }
}

static int is_text(struct in body, const char *text)
{
    return left(&body) == strlen(text) && memcmp(body.at, text, left(&body)) == 0;
}

/* -- writing: what does not fit any more is left out, and known by `written` being above the room -- */

static void put(struct np_pb *out, const char *text, size_t size)
{
    if (out->written <= out->room && size <= out->room - out->written)
        memcpy(out->text + out->written, text, size);
    else
        size = out->room + 1 - (out->written <= out->room ? out->written : out->room + 1);
    out->written += size;
}

static void put_text(struct np_pb *out, const char *text)
{
    put(out, text, strlen(text));
}

/* How many bytes the character at the front has, or 0 where these are none of UTF-8. */
static size_t get_character(const struct in *in)
{
    const uint8_t first = *in->at;
    const size_t size = first < 0x80   ? 1
                        : first < 0xc2 ? 0
                        : first < 0xe0 ? 2
                        : first < 0xf0 ? 3
                        : first < 0xf5 ? 4
                                       : 0;

    if (size > left(in))
        return 0;
    /* Those that could be shorter, halves of a pair, and those that are beyond the last character. */
    if ((first == 0xe0 && in->at[1] < 0xa0) || (first == 0xed && in->at[1] > 0x9f) ||
        (first == 0xf0 && in->at[1] < 0x90) || (first == 0xf4 && in->at[1] > 0x8f))
        return 0;
    for (size_t i = 1; i < size; i++)
        if ((in->at[i] & 0xc0) != 0x80)
            return 0;
    return size;
}

/* A string of JSON. A byte that is none of UTF-8 becomes a replacement character, as in the JSON of an API server. */
static void put_string(struct np_pb *out, struct in body)
{
    static const char digits[] = "0123456789abcdef";
    char escaped[] = {'\\', 'u', '0', '0', 0, 0};

    put(out, "\"", 1);
    while (body.at < body.end) {
        const uint8_t *const start = body.at;
        size_t size = 1;

        while (body.at < body.end && *body.at >= 0x20 && *body.at != '"' && *body.at != '\\' && size > 0) {
            size = get_character(&body);
            body.at += size;
        }
        put(out, (const char *)start, (size_t)(body.at - start));
        if (size == 0) {
            put_text(out, "\\ufffd");
            body.at++;
        } else if (body.at < body.end) {
            escaped[4] = digits[*body.at >> 4];
            escaped[5] = digits[*body.at++ & 15];
            put(out, escaped, sizeof(escaped));
        }
    }
    put(out, "\"", 1);
}

static void put_number(struct np_pb *out, int64_t number)
{
    char digits[20];
    char *at = digits + sizeof(digits);
    uint64_t rest = number < 0 ? 0 - (uint64_t)number : (uint64_t)number;

    do {
        *--at = (char)('0' + rest % 10);
        rest /= 10;
    } while (rest);
    if (number < 0)
        put(out, "-", 1);
    put(out, at, (size_t)(digits + sizeof(digits) - at));
}

/* A comma, but for the first; `"name":`. */
static void put_name(struct np_pb *out, int *any, const char *name)
{
    put_text(out, *any ? ",\"" : "\"");
    put_text(out, name);
    put_text(out, "\":");
    *any = 1;
}

/* An entry of a map of strings: `"key":"value"`. Returns 0 or -EBADMSG. */
static int put_pair(struct np_pb *out, struct in body)
{
    struct in parts[2] = {{body.at, body.at}, {body.at, body.at}};
    struct found found;
    int result;

    while ((result = next_field(&body, &found)) > 0)
        if (found.number == 1 || found.number == 2) {
            if (found.type != BYTES)
                return -EBADMSG;
            parts[found.number - 1] = found.body;
        }
    put_string(out, parts[0]);
    put(out, ":", 1);
    put_string(out, parts[1]);
    return result;
}

static int put_message(struct np_pb *out, struct in body, const struct message *message);

/* The value of a field. Returns 0 or -EBADMSG. */
static int put_value(struct np_pb *out, const struct field *field, const struct found *found)
{
    const int is_varint = field->kind == NUMBER || field->kind == COUNT || field->kind == BOOLEAN;

    if (found->type != (is_varint ? VARINT : BYTES))
        return -EBADMSG;
    switch (field->kind) {
    case NUMBER:
    case COUNT:
        put_number(out, (int64_t)found->value);
        return 0;
    case BOOLEAN:
        put_text(out, found->value ? "true" : "false");
        return 0;
    case PAIRS:
        return put_pair(out, found->body);
    case PRESENCE:
        put_text(out, "\"\"");
        return 0;
    case TEXT:
        put_string(out, found->body);
        return 0;
    default:
        return put_message(out, found->body, field->inside);
    }
}

/* Writes the known fields of a message as an object of JSON. An API server writes fields by their numbers, each once and what is repeated in
 * a row: what stands otherwise is refused, for two readings of it are possible. A text that is empty, a time that is none and a count of
 * none are not there, as in the JSON of an API server. Returns 0 or -EBADMSG. */
static int put_message(struct np_pb *out, struct in body, const struct message *message)
{
    const struct field *last = NULL;
    struct found found;
    const char *close = "";
    int any = message->front != NULL, result;

    put(out, "{", 1);
    if (any)
        put_text(out, message->front);
    while ((result = next_field(&body, &found)) > 0) {
        const struct field *field = message->fields, *const end = field + message->count;

        while (field < end && field->number != found.number)
            field++;
        if (field == end)
            continue;
        if (last && (field < last || (field == last && !*close)))
            return -EBADMSG;
        if (((field->kind == TEXT || field->kind == PRESENCE) && found.type == BYTES && left(&found.body) == 0) ||
            (field->kind == COUNT && found.type == VARINT && found.value == 0))
            continue;
        if (field == last) {
            put(out, ",", 1);
        } else {
            put_text(out, close);
            put_name(out, &any, field->name);
            close = field->kind == MESSAGES ? "]" : field->kind == PAIRS ? "}" : "";
            if (*close)
                put(out, field->kind == MESSAGES ? "[" : "{", 1);
        }
        last = field;
        if (put_value(out, field, &found) < 0)
            return -EBADMSG;
    }
    put_text(out, close);
    put(out, "}", 1);
    return result;
}

/* -- objects and events -- */

/* An object in its envelope: four bytes, what it is, and itself. `kind` NULL is any. Returns 0 or -EBADMSG. */
static int open_envelope(struct in body, const char *kind, struct in *object)
{
    static const uint8_t magic[4] = {'k', '8', 's', 0};
    struct found found, of_type;
    int result, is_kind = !kind, is_there = 0;

    if (left(&body) < sizeof(magic) || memcmp(body.at, magic, sizeof(magic)) != 0)
        return -EBADMSG;
    body.at += sizeof(magic);
    while ((result = next_field(&body, &found)) > 0) {
        if (found.number <= 4 && found.type != BYTES)
            return -EBADMSG;
        if (found.number == 1) {
            while ((result = next_field(&found.body, &of_type)) > 0)
                if (kind && of_type.number == 2)
                    is_kind = of_type.type == BYTES && is_text(of_type.body, kind);
            if (result < 0)
                return -EBADMSG;
        } else if (found.number == 2) {
            *object = found.body;
            is_there = 1;
        } else if (found.number <= 4 && left(&found.body)) {
            return -EBADMSG; /* it is compressed, or JSON */
        }
    }
    return result == 0 && is_kind && is_there ? 0 : -EBADMSG;
}

static int put_status(struct np_pb *out, struct in body)
{
    struct in object;

    if (open_envelope(body, "Status", &object) < 0)
        return -EBADMSG;
    return put_message(out, object, &STATUS);
}

/* Writes the line of one event. Returns 0 or -EBADMSG. */
static int put_event(struct np_pb *out, struct in body)
{
    struct in type = {body.at, body.at}, raw = type, object;
    struct found found, of_raw;
    int result;

    while ((result = next_field(&body, &found)) > 0) {
        if (found.number <= 2 && found.type != BYTES)
            return -EBADMSG;
        if (found.number == 1)
            type = found.body;
        if (found.number != 2)
            continue;
        while ((result = next_field(&found.body, &of_raw)) > 0)
            if (of_raw.number == 1 && of_raw.type == BYTES)
                raw = of_raw.body;
        if (result < 0)
            return -EBADMSG;
    }
    if (result < 0)
        return -EBADMSG;
    put_text(out, "{\"type\":");
    put_string(out, type);
    put_text(out, ",\"object\":");
    if (is_text(type, "ERROR"))
        result = put_status(out, raw);
    else if (is_text(type, "BOOKMARK"))
        result = open_envelope(raw, NULL, &object) < 0 ? -EBADMSG : put_message(out, object, &BOOKMARK);
    else if (is_text(type, "ADDED") || is_text(type, "MODIFIED") || is_text(type, "DELETED"))
        result = open_envelope(raw, "Pod", &object) < 0 ? -EBADMSG : put_message(out, object, &POD);
    else
        result = -EBADMSG;
    put_text(out, "}\n");
    return result;
}

/* Writes the lines of all whole frames of a watch of pods; `used` is how many bytes these are. Each frame has its size before it, in four
 * bytes. Returns 0; -EBADMSG where the next frame is no event or -EMSGSIZE where it is longer than `most`, behind the lines of those
 * before it; or -ENOSPC where its line has no room. */
int np_pb_lines(const uint8_t *data, size_t size, size_t most, struct np_pb *out)
{
    struct in in = {data, data + size};

    out->written = out->used = 0;
    while (left(&in) >= 4) {
        const size_t before = out->written;
        const uint32_t length =
            (uint32_t)in.at[0] << 24 | (uint32_t)in.at[1] << 16 | (uint32_t)in.at[2] << 8 | in.at[3];
        struct in frame;
        int result;

        if (length > most)
            return -EMSGSIZE;
        if (left(&in) - 4 < length)
            break;
        frame = (struct in){in.at + 4, in.at + 4 + length};
        in.at = frame.end;
        result = put_event(out, frame);
        if (result == 0 && out->written > out->room)
            result = -ENOSPC;
        if (result < 0) {
            out->written = before;
            return result;
        }
        out->used = (size_t)(in.at - data);
    }
    return 0;
}

/* Writes the Status that the body of a refusal is, as JSON. Returns 0, -EBADMSG, or -ENOSPC. */
int np_pb_status(const uint8_t *data, size_t size, struct np_pb *out)
{
    const struct in in = {data, data + size};
    int result;

    out->written = out->used = 0;
    result = put_status(out, in);
    return result == 0 && out->written > out->room ? -ENOSPC : result;
}

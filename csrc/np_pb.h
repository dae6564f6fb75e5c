/* A watch in the protobuf of an API server's, as the lines that it would be in JSON: of each object the fields that are read here, no others.
 *
 * Bytes in, text out; whatever the bytes are, nothing is read outside them and nothing written outside the room. */
#ifndef NP_PB_H
#define NP_PB_H

#include <stddef.h>
#include <stdint.h>

/* cdef: begin */
struct np_pb {
    char *text;
    size_t room;
    size_t written;
    size_t used;
};

int np_pb_lines(const uint8_t *data, size_t size, size_t most, struct np_pb *out);
int np_pb_status(const uint8_t *data, size_t size, struct np_pb *out);
/* cdef: end */

#endif

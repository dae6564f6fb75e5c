/* Sorting of packed records of one width by their bytes. */
#ifndef NP_SORT_H
#define NP_SORT_H

#include <stddef.h>
#include <stdint.h>

/* cdef: begin */
#define NP_SORT_WIDTH 24
int np_sort(uint8_t *records, uint8_t *scratch, size_t count, size_t width);
/* cdef: end */

#endif

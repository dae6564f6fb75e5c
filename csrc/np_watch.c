#include "np_watch.h"
#include "np_sys.h"

#include <string.h>

/* Whether a table is as it was said to be. One that cannot be asked about is not. */
static int is_table_same(const struct np_watch_table *table)
{
    struct np_xt_info info;
    uint32_t size = sizeof(info);

    /* Cleared, as the bytes behind the table's name were when it was asked about before. */
    memset(&info, 0, sizeof(info));
    memcpy(info.name, table->said.name, sizeof(info.name));
    return np_sys_getsockopt(table->fd, table->level, table->name, &info, &size, table->calls) >= 0 &&
           memcmp(&info, &table->said, sizeof(info)) == 0;
}

/* Whether all sets' headers are as they were. */
static int are_sets_same(struct np_watch *watch)
{
    struct np_ipset_dump *dump = watch->dump;

    dump->record_count = 0;
    for (size_t i = 0; i < watch->record_count; i++) {
        dump->seq = watch->seq + (uint32_t)i;
        dump->flags = 0;
        if (np_ipset_record(watch->ipset, dump, watch->records[i].header.name) < 0 || dump->record_count != i + 1 ||
            memcmp(&dump->records[i], &watch->records[i], sizeof(watch->records[i])) != 0)
            return 0;
    }
    return 1;
}

static int is_same(struct np_watch *watch)
{
    for (size_t i = 0; i < watch->table_count; i++)
        if (!is_table_same(&watch->tables[i]))
            return 0;
    return are_sets_same(watch);
}

/* Sleeps until the eventfd `bell` is rung or the clock reads `until`; looks at `next`, and then each time that `every` has passed. Returns
 * NP_WATCH_RUNG, NP_WATCH_OVER, NP_WATCH_TOUCHED where a look found something that is not as it was, or cannot be asked about, or -errno. */
int np_watch(struct np_watch *watch, int64_t until)
{
    for (;;) {
        const int is_look = watch->next < until;
        const int result = np_sys_await(watch->bell, is_look ? watch->next : until, &watch->calls);

        if (result != 0)
            return result < 0 ? result : NP_WATCH_RUNG;
        if (!is_look)
            return NP_WATCH_OVER;
        watch->next = np_sys_now() + watch->every;
        if (!is_same(watch))
            return NP_WATCH_TOUCHED;
    }
}

/* A reader in C from the public header alone.
 *
 *     reader NAME FIRST LAST SLOTS    read records FIRST..LAST of ring NAME, SLOTS at a time, and print one line each:
 *     sequence type instrument ts_event source_sequence venue price-or-bid size-or-ask; "gap FROM TO" where records were overrun
 *
 * Exits with the tk_attach_problem if the ring can't be attached, its text on stderr. tests/unit/test_header.py drives it.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include <tickengine.h>

int main(int count_of_arguments, char **arguments) {
    struct tk_ring ring;
    struct tk_record records[64];
    if (count_of_arguments != 5) return 100;
    uint64_t next = strtoull(arguments[2], NULL, 10);
    const uint64_t last = strtoull(arguments[3], NULL, 10);
    const uint64_t slots = strtoull(arguments[4], NULL, 10);

    const int problem = tk_attach(arguments[1], &ring);
    if (problem != TK_ATTACHED) {
        fprintf(stderr, "%s\n", tk_attach_text(problem));
        return problem;
    }
    if (next == 0) next = tk_oldest(&ring);
    printf("depth %" PRIu64 " newest %" PRIu64 " oldest %" PRIu64 "\n", ring.depth, tk_newest(&ring), tk_oldest(&ring));
    while (next <= last) {
        uint64_t lost;
        const uint64_t count = tk_read_next(&ring, &next, records, slots < 64 ? slots : 64, &lost);
        if (lost > 0) printf("gap %" PRIu64 " %" PRIu64 "\n", records[0].sequence - lost, records[0].sequence);
        for (uint64_t i = 0; i < count; i++) {
            const struct tk_record *r = &records[i];
            const int quote = r->record_type == TK_TYPE_QUOTE;
            printf("%" PRIu64 " %u %u %" PRId64 " %" PRIu64 " %.8s %.17g %.17g%s\n", r->sequence, r->record_type,
                   r->instrument_id, r->ts_event, r->source_sequence, r->venue, quote ? r->quote.bid : r->tick.price,
                   quote ? r->quote.ask : r->tick.size, r->flags & TK_FLAG_GAP_BEFORE ? " after-gap" : "");
        }
        if (count == 0) tk_pause();
    }
    tk_detach(&ring);
    tk_detach(&ring);
    return 0;
}

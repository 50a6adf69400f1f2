# The record as native code of the workers sees it: struct tk_record of the public header, which is printed from
# shm/layout.py. Bodies share their bytes. Cython asks the C compiler for every offset and value; nothing is repeated here
# but names.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "shm/include/tickengine.h" nogil:
    enum:
        TK_TYPE_TICK
        TK_TYPE_QUOTE
        TK_TYPE_BAR
        TK_TYPE_TRADE
        TK_TYPE_LEVEL2
        TK_TYPE_NEWS
        TK_TYPE_STATUS
        TK_SOURCE_MOCK
        TK_FLAG_OUTLIER
        TK_FLAG_VOLUME_SPIKE
        TK_FLAG_OUT_OF_ORDER
        TK_FLAG_LATE
        TK_FLAG_CROSSED
        TK_FLAG_INCOMPLETE
        TK_FLAG_CORRECTED
        TK_FLAG_BACKFILLED
        TK_FLAG_REPLAYED
        TK_FLAG_SYNTHETIC
        TK_FLAG_SNAPSHOT
        TK_FLAG_GAP_BEFORE
        TK_FLAG_CONTINUES
        TK_PRIORITY_HIGH
        TK_PRIORITY_NORMAL
        TK_PRIORITY_LOW
        TK_SIDE_BUY
        TK_SIDE_SELL
        TK_ACTION_MODIFY
        TK_ACTION_CLEAR
        TK_STATUS_GAP
        TK_STATUS_END_OF_REPLAY
        TK_STATUS_TRADING_STATUS

    struct tk_tick:
        double price
        double size
        uint64_t trade_id
        char condition[8]
        double volume
        double vwap

    struct tk_quote:
        double bid
        double ask
        double bid_size
        double ask_size
        double mid
        double spread
        uint32_t bid_count
        uint32_t ask_count

    struct tk_bar:
        double open
        double high
        double low
        double close
        double volume
        double vwap
        uint32_t interval_s
        uint32_t trade_count

    struct tk_level2:
        double price
        double size
        uint32_t order_count
        uint16_t level
        uint8_t action
        uint8_t depth
        double best_bid
        double best_ask

    struct tk_news:
        char headline[64]

    struct tk_status:
        uint32_t code

    struct tk_record:
        uint64_t sequence
        int64_t ts_event
        int64_t ts_receive
        uint32_t instrument_id
        uint8_t record_type
        uint8_t source
        uint16_t flags
        uint64_t source_sequence
        uint16_t feed_id
        uint8_t priority
        uint8_t side
        char venue[8]
        tk_tick tick
        tk_quote quote
        tk_bar bar
        tk_level2 level2
        tk_news news
        tk_status status

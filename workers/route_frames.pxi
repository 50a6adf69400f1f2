# Part of _route.pyx: the raw frames of one turn, one after the other in one buffer.
#
#     out       |header|records of a topic|header|...|        `at` and `bytes`: where each frame is, `topic`: whose
#
# Room is the router's: twice a turn's records, and a header for each at the worst.

cdef struct Frames:
    char *out
    char *to            # where the next frame begins
    uint64_t *at
    uint64_t *bytes
    uint32_t *topic
    uint32_t count
    uint32_t most       # records a frame has at most


cdef inline void begin_frames(Frames *frames) noexcept nogil:
    frames.count = 0
    frames.to = frames.out


cdef inline void put_header(char *to, uint16_t ring, uint32_t count, uint64_t number) noexcept nogil:
    cdef uint16_t version = WIRE_VERSION
    memcpy(to, &version, 2)
    memcpy(to + 2, &ring, 2)
    memcpy(to + 4, &count, 4)
    memcpy(to + 8, &number, 8)


cdef char *add_frames(Frames *frames, uint32_t topic, uint16_t ring, uint32_t count, uint64_t number) noexcept nogil:
    """Reserve and head the frames for `count` records of a topic; returns where the first of them goes.

    A frame's records follow its header, the next frame follows those.
    """
    cdef uint32_t some, i = frames.count
    cdef char *to = frames.to
    while count:
        some = count if count < frames.most else frames.most
        put_header(to, ring, some, number)
        frames.topic[i] = topic
        frames.at[i] = to - frames.out
        frames.bytes[i] = HEADER_BYTES + some * RECORD_BYTES
        to += frames.bytes[i]
        i += 1
        number += some
        count -= some
    cdef char *first = frames.to + HEADER_BYTES
    frames.count = i
    frames.to = to
    return first


cdef list frame_list(const Frames *frames, view):
    """(topic index, memoryview of the frame) of each; `view` is of the buffer."""
    cdef uint32_t i
    cdef uint64_t at
    cdef list found = []
    for i in range(frames.count):
        at = frames.at[i]
        found.append((frames.topic[i], view[at : at + frames.bytes[i]]))
    return found

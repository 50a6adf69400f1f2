# Part of workers/_redundancy.pyx: the books of a group. Each member's book of each instrument (workers/group_book.h) is kept
# from its level2 records, published or not; when another member takes over, its book is *due*, and is painted whole as a
# picture: a CLEAR, then the levels. Which books are due is the board's to say.

cdef extern from "workers/group_book.h" nogil:
    int group_book_tell(group_book *book, const tk_record *record, int orders, uint64_t *slots, uint64_t limit)
    void group_book_void(group_book *book, uint64_t *slots)
    void group_book_close(group_book *book, uint64_t *slots)
    uint64_t group_book_records(const group_book *book)
    int group_book_picture(const group_book *book, tk_record *out, int before, int64_t now_ns)
    enum:
        SLOT_BYTES "sizeof(struct group_level)"

cdef struct Books:
    uint64_t slots_limit       # of all books of one member
    uint64_t lost              # levels that found no room
    uint32_t due               # keys whose book is to be published whole
    uint32_t next              # the key that pictures look at next


cdef bint tell_book(Books *books, Key *key, int member, Trait *trait, const tk_record *record) noexcept nogil:
    """A level2 record goes into the book of the member that told it; False = no memory for a book."""
    cdef group_book **of_key = key.books
    if of_key == NULL:
        of_key = key.books = <group_book **>calloc(MEMBERS, sizeof(void *))
        if of_key == NULL:
            return False
    if of_key[member] == NULL:
        of_key[member] = <group_book *>calloc(1, sizeof(group_book))
        if of_key[member] == NULL:
            return False
    if not group_book_tell(of_key[member], record, trait.orders, &trait.slots, books.slots_limit):
        books.lost += 1
    return True


cdef void doubt_books(Keys *keys, int member, uint32_t instrument_id) noexcept nogil:
    """The member has a hole: its books there may lack something until they begin anew."""
    cdef uint32_t at
    for at in range(keys.count):
        if (keys.key[at].books != NULL and keys.key[at].books[member] != NULL
                and (instrument_id >= ID_LIMIT or keys.key[at].instrument_id == instrument_id)):
            keys.key[at].books[member].whole = 0


cdef void void_books(Keys *keys, int member, Trait *trait) noexcept nogil:
    """The member's books are not known any more, until it tells them anew."""
    cdef uint32_t at
    for at in range(keys.count):
        if keys.key[at].books != NULL and keys.key[at].books[member] != NULL:
            group_book_void(keys.key[at].books[member], &trait.slots)


cdef void drop_book(Key *key, int member, Trait *trait) noexcept nogil:
    if key.books != NULL and key.books[member] != NULL:
        group_book_close(key.books[member], &trait.slots)
        free(key.books[member])
        key.books[member] = NULL


cdef void free_books(Keys *keys, Trait *traits) noexcept nogil:
    cdef uint32_t at
    cdef int member
    for at in range(keys.count):
        for member in range(MEMBERS):
            drop_book(&keys.key[at], member, &traits[member])
        free(keys.key[at].books)


cdef inline void make_due(Books *books, Key *key) noexcept nogil:
    if not key.due:
        key.due = 1
        books.due += 1


cdef inline void make_told(Books *books, Key *key) noexcept nogil:
    """It is published, or about to be: a picture of it is not due any more."""
    key.due = 0
    books.due -= 1


cdef inline group_book *published_book(const Keys *keys, const Key *key) noexcept nogil:
    """As its publisher has it; NULL = it has told nothing."""
    return key.books[owner_of(keys, key)] if key.books != NULL else NULL


cdef uint64_t picture_records(const Keys *keys, const Key *key) noexcept nogil:
    cdef const group_book *book = published_book(keys, key)
    if book == NULL:
        return 1 if key.mark_ts != INT64_MIN else 0
    return group_book_records(book)


cdef uint32_t choose_pictures(const Books *books, const Keys *keys, uint64_t most, uint64_t *records) noexcept nogil:
    """How many keys from `next` on make up to `most` records of pictures, one due book at least; `records`: how many."""
    cdef uint32_t looked = 0, taken = 0
    cdef uint64_t more
    cdef const Key *key
    records[0] = 0
    while looked < keys.count and taken < books.due:
        key = &keys.key[(books.next % keys.count + looked) % keys.count]
        if key.due:
            more = picture_records(keys, key)
            if taken and records[0] + more > most:
                break
            records[0] += more
            taken += 1
        looked += 1
    return looked


cdef bint paint_pictures(Books *books, Keys *keys, const Trait *traits, uint32_t looked, tk_record *target,
                         int64_t now_ns) noexcept nogil:
    """The due books of `looked` keys from `next` on, one after the other; False = no memory."""
    cdef uint32_t at, first = books.next % keys.count if keys.count else 0
    cdef uint64_t more
    cdef Key *key
    books.next = first + looked
    for at in range(looked):
        key = &keys.key[(first + at) % keys.count]
        if not key.due:
            continue
        more = picture_records(keys, key)
        if more:
            if not paint(keys, key, traits, target, now_ns):
                return False
            target += more
            key.cut = 0
        make_told(books, key)
    return True


cdef bint paint(const Keys *keys, Key *key, const Trait *traits, tk_record *target, int64_t now_ns) noexcept nogil:
    cdef int owner = owner_of(keys, key)
    cdef const group_book *book = published_book(keys, key)
    cdef group_book none
    if book == NULL:
        memset(&none, 0, sizeof(group_book))
        book = &none
    if not group_book_picture(book, target, key.cut, now_ns):
        return False
    target.instrument_id = key.instrument_id
    target.feed_id, target.source = traits[owner].feed_id, traits[owner].source
    move_mark(key, target, now_ns)
    return True

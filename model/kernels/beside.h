// Vector work in small pieces, overlapped with the tile unit's products.
//
// A tile product keeps the unit busy for 16 cycles and costs the rest of the core one instruction. About a hundred
// vector instructions between every few products are therefore nearly free, as long as both fit in the core's
// reorder window of about 500 instructions; work between whole matrix products is not.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace {

// A queue of pieces, run in the order they were added.
class Beside {
  public:
    // Queues piece(i) for i in [0, count); all have run when finish() returns.
    template <class Piece>
    void add(int64_t count, const Piece& piece) {
        static_assert(std::is_trivially_copyable_v<Piece> && sizeof(Piece) <= ROOM);
        if (count <= 0) return;
        if (last == MOST) finish();
        Work& work = works[last++];
        std::memcpy(work.of, &piece, sizeof(Piece));
        work.run = [](const void* of, int64_t i) { (*static_cast<const Piece*>(of))(i); };
        work.next = 0;
        work.end = count;
        left += count;
    }
    // The same for row(i), i in [0, count), with `rows` rows to a piece.
    template <class Row>
    void add_rows(int64_t count, int64_t rows, const Row& row) {
        if (rows == 1) return add(count, row);
        add((count + rows - 1) / rows, [=](int64_t piece) {
            const int64_t end = std::min(count, (piece + 1) * rows);
            for (int64_t i = piece * rows; i < end; i++) row(i);
        });
    }
    // Spreads the remaining pieces evenly over the next `turns` turns.
    void share(int64_t turns) {
        pieces = left;
        of_turns = turns > 0 ? turns : 1;
        due = 0;
    }
    void turn() {
        due += pieces;
        while (due >= of_turns && left > 0) {
            due -= of_turns;
            one();
        }
    }
    void finish() {
        while (left > 0) one();
    }

  private:
    static constexpr int MOST = 12;
    static constexpr size_t ROOM = 96;
    struct Work {
        void (*run)(const void* of, int64_t i);
        int64_t next, end;
        alignas(8) unsigned char of[ROOM];
    };

    void one() {
        Work& work = works[first];
        work.run(work.of, work.next++);
        left--;
        if (work.next == work.end && ++first == last) first = last = 0;
    }

    Work works[MOST];
    int first = 0, last = 0;
    int64_t left = 0, pieces = 0, of_turns = 1, due = 0;
};

// Work that must be finished with the current product, and work that may take longer.
struct Asides {
    Beside now, later;
    void some() {
        now.turn();
        later.turn();
    }
};

}  // namespace

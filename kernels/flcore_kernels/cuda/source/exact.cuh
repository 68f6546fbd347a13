// Exact sums: integer digits in bins of fixed exponents. cpu/exact.py gives the rules, the derivations and the sources.

// Operands whose elements are loaded before the first is added. Four, or two of 8 bytes an element: four elements of
// four such operands would take 32 of the 128 registers that a thread has if two blocks are to fit a multiprocessor.
template <typename D>
constexpr int at_once = sizeof(typename D::storage) == 8 ? 2 : AT_ONCE;

template <typename D, int COUNT>
__device__ inline double term_of(const Batch<D, COUNT, EACH_LANE> &batch, int operand, int i) {
    return batch.weight[operand] * double(D::value(batch.stored[operand][i], batch.factor[operand]));
}

template <typename D, int COUNT>
__device__ inline u64 deposit_batch(Digits &digits, const Bins &bins, const Batch<D, COUNT, EACH_LANE> &batch) {
    u64 seen = 0;
    i64 high_bits = bits_of(bins.high), low_bits = bits_of(bins.low);
#pragma unroll
    for (int j = 0; j < COUNT; j++) {
#pragma unroll
        for (int i = 0; i < EACH_LANE; i++) {
            double t = term_of(batch, j, i);
            if (D::is_wide) t *= bins.factor;
            double u = t + bins.high;
            double v = t + (bins.both - u);
            seen |= u64(bits_of(u) ^ high_bits);
            digits.upper[i] += u64(bits_of(u)) - u64(high_bits);
            digits.lower[i] += u64(bits_of(v)) - u64(low_bits);
        }
    }
    // An element that no sum takes makes the block look open, so that `survey` finds it.
    return batch.is_beyond() ? seen | 1ull << 63 : seen;
}

// Add four elements of each operand to digits. Returns the OR of the differing bits of the upper ones.
template <typename D>
__device__ inline u64 deposit(Digits &digits, const Bins &bins, const Row &row, i64 index) {
    u64 seen = 0;
    i64 k = 0;
    if (row.is_aligned && index + EACH_LANE <= row.count) {
        for (; k + 1 < row.clients; k += at_once<D>) {
            Batch<D, at_once<D>, EACH_LANE> batch;
            batch.read_whole(row, k, index);
            seen |= deposit_batch(digits, bins, batch);
        }
    }
    for (; k < row.clients; k++) {
        Batch<D, 1, EACH_LANE> batch;
        batch.read_any(row, k, index);
        seen |= deposit_batch(digits, bins, batch);
    }
    return seen;
}

// The largest |weight * x| of a block, by its bits: those of a NaN are larger than those of any number. All bits are
// set for an element that no sum takes.
template <typename D>
__device__ inline u64 survey(const Row &row, i64 index) {
    u64 top = 0;
    for (i64 k = 0; k < row.clients; k++) {
        Batch<D, 1, EACH_LANE> batch;
        batch.read_any(row, k, index);
        for (int i = 0; i < EACH_LANE; i++) top = larger(top, u64(bits_of(fabs(term_of(batch, 0, i)))));
        if (batch.is_beyond()) top = ~0ull;
    }
    return largest_of_sixteen(top);
}

// Not a level: those of float64 terms are -23 to 21, or EMPTY.
constexpr i32 BAD = -32767;

// Sum a block into a lane's digits, on top of those of a total's block of level `held` (EMPTY: there are none). Returns
// the block's level, or BAD if a term is not finite. The level is assumed to be `held` or `guess` and verified by the
// digits, as in cpu/exact.py. All sixteen lanes take the same way: `seen` and `top` are the same in each.

template <typename D>
__device__ inline i32 add_up(Digits &digits, u64 total, i32 held, i32 guess, const Row &row, i64 start, int lane) {
    i64 index = start + lane * EACH_LANE;
    i32 level = held == EMPTY ? guess : held;
    for (bool is_lowered = false, is_right = false;;) {
        digits.begin(total, held, level, lane);
        if (level == EMPTY) return level;
        u64 seen = all_of_sixteen(deposit<D>(digits, Bins(level), row, index));
        bool is_low = held == EMPTY && seen == 0, is_open = !is_lowered && seen >> (CEILING + 1) != 0;
        if (is_right || (!is_open && !is_low)) return level;
        if (is_low && !is_lowered) {
            level--;
            is_lowered = true;
            continue;
        }
        u64 top = survey<D>(row, index);
        if (top >= 0x7FF0000000000000ull) return BAD;
        i32 right = larger(level_of(i64(top)), held);
        if (right == level) return level;
        level = right;
        is_right = true;
    }
}

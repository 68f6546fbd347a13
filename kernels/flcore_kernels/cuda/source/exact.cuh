// Exact sums: integer digits on absolute exponent bins, which no order of arrival can move (see cpu/exact.py).
//
// Adding M to a term t = fl64(weight * x) rounds it to a multiple of the bin's unit, and bits(t + M) - bits(M) are its
// digit; what is left goes to the bin below. Nothing is carried, and a term is never contracted with a sum.

// Operands that are read before the first of them is added; fewer wide ones, for registers are few here.
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
            // both - u is M of the lower bin minus the digit's value, exactly; one more sum rounds the rest there.
            double v = t + (bins.both - u);
            seen |= u64(bits_of(u) ^ high_bits);
            digits.upper[i] += u64(bits_of(u)) - u64(high_bits);
            digits.lower[i] += u64(bits_of(v)) - u64(low_bits);
        }
    }
    return batch.is_beyond() ? seen | 1ull << 63 : seen;
}

// Add four elements of each operand to digits; returns what was seen of the upper ones.
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

// The largest |weight * x| of a block by its bits, for which a NaN is larger than any number; all bits for an element
// that no sum takes.
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

// Sum a block into a lane's digits, on top of a total's (`held` is EMPTY: of none). Returns its level, or BAD where a
// term is not finite. The level is taken to be the total's, or `guess`; what is seen of the digits tells whether that
// was right, so that operands are read but once. Where they are all below it, the level under it is tried, which any of
// them then fits; where it was wrong otherwise, the block is surveyed and summed anew.
constexpr i32 BAD = -32767;

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

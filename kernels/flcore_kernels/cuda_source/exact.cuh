// Exact sums: integer digits on absolute exponent bins, which no order of arrival can move (see cpu_exact.py).
//
// Adding M to a term t = fl64(weight * x) rounds it to a multiple of the bin's unit, and bits(t + M) - bits(M) are its
// digit; what is left goes to the bin below. Nothing is carried, and a term is never contracted with a sum.

// A part's elements of one lane, and what they are multiplied by.
template <typename D>
struct Lane {
    typename D::storage stored[EACH_LANE];
    float factor;
    double weight;

    __device__ void read(const Row &row, const double *weights, i64 part, i64 index) {
        load(stored, row.parts[part], index, row.count);
        factor = factor_at<D>(row.scales[part], index, row.count);
        weight = weights[part];
    }
    __device__ double term(int i) const { return weight * double(D::value(stored[i], factor)); }
    __device__ bool is_beyond() const {
        bool is_bad = false;
        for (int i = 0; i < EACH_LANE; i++) is_bad = is_bad || D::is_beyond(stored[i]);
        return is_bad;
    }
};

// Parts that are read before the first of them is added; fewer wide ones, for registers are few here.
template <typename D>
constexpr int at_once = sizeof(typename D::storage) == 8 ? 2 : AT_ONCE;

// Add four elements of each part to digits; returns what was seen of the upper ones.
template <typename D>
__device__ inline u64 deposit(Digits &digits, const Bins &bins, const Row &row, const double *weights, i64 clients,
                              i64 index) {
    u64 seen = 0;
    i64 high_bits = bits_of(bins.high), low_bits = bits_of(bins.low);
    for (i64 k = 0; k < clients; k += at_once<D>) {
        Lane<D> lane[at_once<D>];
        i64 left = smaller(i64(at_once<D>), clients - k);
#pragma unroll
        for (int j = 0; j < at_once<D>; j++)
            if (j < left) lane[j].read(row, weights, k + j, index);
#pragma unroll
        for (int j = 0; j < at_once<D>; j++)
            if (j < left) {
#pragma unroll
                for (int i = 0; i < EACH_LANE; i++) {
                    double t = lane[j].term(i);
                    if (D::is_wide) t *= bins.factor;
                    double u = t + bins.high;
                    // both - u is M of the lower bin minus the digit's value, exactly; one more sum rounds the rest.
                    double v = t + (bins.both - u);
                    seen |= u64(bits_of(u) ^ high_bits);
                    digits.upper[i] += u64(bits_of(u)) - u64(high_bits);
                    digits.lower[i] += u64(bits_of(v)) - u64(low_bits);
                }
                if (D::is_limited && lane[j].is_beyond()) seen |= 1ull << 63;
            }
    }
    return seen;
}

// The largest |weight * x| of a block by its bits, for which a NaN is larger than any number; all bits for an element
// that no sum takes.
template <typename D>
__device__ inline u64 survey(const Row &row, const double *weights, i64 clients, i64 index) {
    u64 top = 0;
    for (i64 k = 0; k < clients; k++) {
        Lane<D> lane;
        lane.read(row, weights, k, index);
        for (int i = 0; i < EACH_LANE; i++) top = larger(top, u64(bits_of(fabs(lane.term(i)))));
        if (D::is_limited && lane.is_beyond()) top = ~0ull;
    }
    return largest_of_sixteen(top);
}

// Sum a block into a lane's digits, on top of a total's (`held` is EMPTY: of none). Returns its level, or BAD where a
// term is not finite. The level is taken to be the total's, or `guess`; what is seen of the digits tells whether that
// was right, so that parts are read but once. Where it was wrong, the block is surveyed and summed anew.
constexpr i32 BAD = -32767;

template <typename D>
__device__ inline i32 add_up(Digits &digits, u64 total, i32 held, i32 guess, const Row &row, const double *weights,
                             i64 clients, i64 start, int lane) {
    i64 index = start + lane * EACH_LANE;
    i32 level = held == EMPTY ? guess : held;
    for (bool is_right = false;;) {
        digits.begin(total, held, level, lane);
        if (level == EMPTY) return level;
        u64 seen = all_of_sixteen(deposit<D>(digits, Bins(level), row, weights, clients, index));
        bool is_open = seen >> (CEILING + 1) != 0, is_low = held == EMPTY && seen == 0;
        if (is_right || (!is_open && !is_low)) return level;
        u64 top = survey<D>(row, weights, clients, index);
        if (top >= 0x7FF0000000000000ull) return BAD;
        i32 right = larger(level_of(i64(top)), held);
        if (right == level) return level;
        level = right;
        is_right = true;
    }
}

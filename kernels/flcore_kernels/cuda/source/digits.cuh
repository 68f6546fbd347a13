// Blocks of digits: the state of an exact total. cpu/digits.py defines it, gives its bounds, and has the same bits.
//
// Bin B counts multiples of 2^(48 B). A block of 64 elements keeps the digits of its level (its top bin) and of the bin
// below: first 64 upper digits, then 64 lower digits.

constexpr int WIDTH = 48, BLOCK = 64, EMPTY = -32768, CEILING = 46;

// The smallest B with |term| <= 2^(48 (B + 1) - 1), from the bits of |term|; EMPTY for a zero.
__device__ inline i32 level_of(i64 bits) {
    if (bits == 0) return EMPTY;
    i64 below = 0;
    if (bits >> 52 == 0) {  // a denormal
        bits = bits_of(double(bits));
        below = -1074;
    }
    i64 exponent = (bits >> 52) - 1023 + below;
    i64 ceiling = exponent + ((bits & 0xFFFFFFFFFFFFFLL) != 0 ? 1 : 0);
    return i32((ceiling + WIDTH * 30) / WIDTH) - 30;
}

// M of a level's two bins, their sum, and the factor by which terms are moved, so that M stays a normal number.
struct Bins {
    double high, low, both, factor;
    __device__ explicit Bins(i32 level) {
        if (level == EMPTY) level = 0;
        i32 shift = level > 18 ? -4 : level < -18 ? 4 : 0;
        i32 top = level + shift;
        high = (1.5 * (1 << (52 - CEILING)) + 1.0) * power_of_two(CEILING + WIDTH * top);
        low = 1.5 * power_of_two(52 + WIDTH * (top - 1));
        both = high + low;
        factor = power_of_two(WIDTH * shift);
    }
};

// Four elements' digits, in a lane's registers. No sum of digits overflows; u64, because bits(t + M) - bits(M) may wrap
// around for a wrong level, and a signed overflow is undefined in C++.
struct Digits {
    u64 upper[EACH_LANE], lower[EACH_LANE];

    __device__ void clear() {
        for (int i = 0; i < EACH_LANE; i++) upper[i] = lower[i] = 0;
    }

    // Those of a total's block of level `held`, moved to `level`, which is not lower.
    __device__ void begin(u64 block, i32 held, i32 level, int lane) {
        clear();
        if (held == EMPTY || level > held + 1) return;
        if (level == held) {
            load(upper, block, lane * EACH_LANE, 2 * BLOCK);
            load(lower, block, BLOCK + lane * EACH_LANE, 2 * BLOCK);
        } else {
            load(lower, block, lane * EACH_LANE, 2 * BLOCK);
        }
    }

    __device__ void write(u64 block, int lane) const {
        store(block, lane * EACH_LANE, 2 * BLOCK, upper);
        store(block, BLOCK + lane * EACH_LANE, 2 * BLOCK, lower);
    }
};

__device__ inline u64 block_address(u64 total, i64 block) { return total + u64(block) * (2 * BLOCK * 8); }

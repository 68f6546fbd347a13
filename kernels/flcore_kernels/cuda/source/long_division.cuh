// The quotient by long division in integers, rounded once: decides what float64 cannot, one element at a time.
//
// The shorter of dividend (at most 112 bits) and divisor (at most 196) is shifted so that their highest bits meet. Then
// the dividend is below twice the divisor, and stays so: 63 steps of subtracting and doubling give 63 bits of the
// quotient, and whether a fraction is left. Doubled, it has at most 197 of 256 bits. The CPU estimates the quotient in
// float64 instead, with the same result. Loops are unrolled, so that all limbs are in registers.

struct Wide {
    u64 limb[4];

    __device__ int bit_length() const {
        int length = 0;
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (limb[i] != 0) length = 64 * i + 64 - __clzll(i64(limb[i]));
        return length;
    }
    __device__ bool is_zero() const { return (limb[0] | limb[1] | limb[2] | limb[3]) == 0; }
    __device__ bool is_less(const Wide &other) const {
        bool less = false;
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (limb[i] != other.limb[i]) less = limb[i] < other.limb[i];
        return less;
    }
    __device__ void subtract(const Wide &other) {
        u64 borrow = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u64 before = limb[i], once = before - other.limb[i];
            limb[i] = once - borrow;
            borrow = before < other.limb[i] || once < borrow ? 1 : 0;
        }
    }
    __device__ void double_it() {
#pragma unroll
        for (int i = 3; i > 0; i--) limb[i] = limb[i] << 1 | limb[i - 1] >> 63;
        limb[0] <<= 1;
    }
    __device__ void shift_left(int bits) {
        for (; bits >= 64; bits -= 64) {
#pragma unroll
            for (int i = 3; i > 0; i--) limb[i] = limb[i - 1];
            limb[0] = 0;
        }
        for (; bits > 0; bits--) double_it();
    }
};

// value * 2^exponent; exact if the result is a float64, which 2^exponent need not be.
__device__ inline double scale(double value, i64 exponent) {
    for (; exponent > 1000; exponent -= 1000) value *= 0x1p1000;
    for (; exponent < -1000; exponent += 1000) value *= 0x1p-1000;
    return value * power_of_two(exponent);
}

// (quotient + fraction) * 2^last, rounded once; 0 < fraction < 1 if `has_rest`. `quotient` has 62 or 63 bits.
__device__ inline double round_bits(u64 quotient, bool has_rest, i64 last, int precision, i64 lowest) {
    i64 length = quotient >> 62 != 0 ? 63 : 62;
    i64 drop = larger(length - smaller(precision, 53), lowest - last);
    if (drop > 63) return 0.0;
    u64 kept = quotient >> drop, cut = quotient & ((1ull << drop) - 1), half = 1ull << (drop - 1);
    if (cut > half || (cut == half && (has_rest || kept & 1))) kept++;
    return scale(double(kept), last + drop);
}

// Not inlined: seldom called, and its limbs would take registers of every kernel that can call it.
__device__ __noinline__ double divided(i64 upper, i64 lower, i32 level, const Divisor &by, int precision, i64 lowest) {
    bool is_negative = upper < 0 || (upper == 0 && lower < 0);
    if (is_negative) {
        upper = -upper;
        lower = -lower;
    }
    u64 low = u64(upper) << WIDTH, added = low + u64(lower);  // upper * 2^48 + lower, with |lower| <= 2^47
    u64 high = (u64(upper) >> (64 - WIDTH)) + (lower >= 0 ? (added < low ? 1 : 0) : (added > low ? -1 : 0));
    Wide rest = {{added, high, 0, 0}}, other = {{by.limbs[0], by.limbs[1], by.limbs[2], by.limbs[3]}};
    if (rest.is_zero()) return 0.0;
    int apart = rest.bit_length() - other.bit_length();
    if (apart < 0) rest.shift_left(-apart);
    else other.shift_left(apart);
    u64 quotient = 0;
    for (int bit = 0; bit < 63; bit++) {
        quotient <<= 1;
        if (!rest.is_less(other)) {
            rest.subtract(other);
            quotient |= 1;
        }
        rest.double_it();
    }
    i64 last = WIDTH * (i64(level) - 1) - by.exponent + apart - 62;
    double value = round_bits(quotient, !rest.is_zero(), last, precision, lowest);
    return is_negative ? -value : value;
}

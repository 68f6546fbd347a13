// The quotient of an exact total and the exact sum of weights, rounded once, wherever float64 can decide it; else
// `is_sure` is false. cpu/quotient.py gives the steps, the bounds and the sources.

constexpr double ERROR = 0x1p-49;

// A sum of weights: as the nearest float64 and the nearest to the rest, and exactly as an odd integer times 2^exponent.
struct Divisor {
    double nearest, rest;
    u64 limbs[4];
    i64 exponent;
};

__device__ inline void carry(u64 upper, u64 lower, i64 &high, i64 &low) {
    i64 carried = (i64(lower) + (1LL << (WIDTH - 1))) >> WIDTH;
    high = i64(upper) + carried;
    low = i64(lower) - carried * (1LL << WIDTH);
}

__device__ inline double two_sum(double a, double b, double &left) {
    double total = a + b, back = total - a;
    left = (a - (total - back)) + (b - back);
    return total;
}

// With the instruction that every device has; the same two numbers as Dekker's product on the CPU.
__device__ inline double two_product(double a, double b, double &left) {
    double product = a * b;
    left = fma(a, b, -product);
    return product;
}

// The float64 next to a value that is not zero, towards the sign of `direction`; itself for a direction of 0.
__device__ inline double neighbour(double value, double direction) {
    i64 step = (direction > 0.0 ? 1 : 0) - (direction < 0.0 ? 1 : 0);
    return from_bits(bits_of(value) + (value > 0.0 ? step : -step));
}

template <typename R>
__device__ inline double quick_mean(i64 upper, i64 lower, double factor, bool &is_sure) {
    double quotient = (double(upper) * 0x1p48 + double(lower)) * factor;
    if (R::is_integer) {
        double below = R::round(quotient * (1.0 - ERROR)), above = R::round(quotient * (1.0 + ERROR));
        is_sure = below == above;
        return below + 0.0;
    }
    constexpr int CUT = R::precision < 53 ? 53 - R::precision : 1;
    // Moved so that the midpoint is 16 modulo 2^CUT: within 16 ulp of it are the values 0 to 32.
    i64 beyond_half = (bits_of(quotient) + ((1LL << (CUT - 1)) + 16)) & ((1LL << CUT) - 1);
    is_sure = beyond_half > 32 && fabs(quotient) >= power_of_two(larger(R::lowest + R::precision - 1, -1022));
    return R::round(quotient);
}

template <typename R>
__device__ inline double careful_mean(i64 upper, i64 lower, double unit, const Divisor &by, bool &is_sure) {
    is_sure = true;
    if ((upper | lower) == 0) return 0.0;
    double low, left, lost, b, d, f, tail;
    double high = two_sum(double(upper) * 0x1p48, double(lower), low);
    double first = high / by.nearest;
    double product = two_product(first, by.nearest, left);
    double remainder = (high - product) - left, outside = first * by.rest;
    double quotient = first + ((remainder + low) - outside) / by.nearest;
    double moved = two_product(quotient - first, by.nearest, lost);
    double a = two_sum(remainder, -moved, b);
    double c = two_sum(a, low - outside, d);
    double e = two_sum(b, d, f);
    double whole = two_sum(c, e, tail);
    double left_out = fabs(by.rest) + fabs(lost) + fabs(f) + fabs(tail);
    double error = left_out == 0.0 ? 0.0 : 0x1p-98 * fabs(high);
    bool is_odd = bits_of(quotient) & 1;
    is_sure = fabs(double(upper)) < 0x1p53;
    if (R::precision == 53) {
        // Compare the remainder with half a step times S. At half a step, the neighbour with an even last bit is right.
        double beside = neighbour(quotient, whole);
        double over = fabs(whole) - fabs(beside - quotient) * 0.5 * by.nearest;
        is_sure = is_sure && fabs(over) >= error;
        return (over > 0.0 || (over == 0.0 && is_odd) ? beside : quotient) * unit + 0.0;
    }
    is_sure = is_sure && fabs(whole) >= error;
    double value = R::round((is_odd ? quotient : neighbour(quotient, whole)) * unit) + 0.0;
    if (R::is_integer) is_sure = is_sure && fabs(value) < 0x1p50;
    return value;
}

// From a total to a result: divide, round once, cast. cpu/finish.py gives the reasons, and has the same bits.

// A thread's elements of the result and of the base, and the first of them that does not fit.
template <typename R, int N>
struct Result {
    typename R::storage values[N], bases[N];
    i64 misfit;  // the first index that does not fit, or -1

    __device__ void take_base(bool has_base, u64 base, i64 index, i64 count) {
        misfit = -1;
        if (has_base) load(bases, base, index, count);
    }
    __device__ double base(int i) const { return double(R::value(bases[i], 1.0f)); }
    __device__ void set(int i, double value, bool is_inside) {
        if (is_inside && !fits<R>(value) && misfit < 0) misfit = i;
        values[i] = R::stored(fits<R>(value) ? value : 0.0);  // converting a number out of range is undefined in C++
    }
};

// The mean of a float32 total is multiplied by the divisor's inverse, that of a float64 total divided.
__device__ inline double float_mean(float held, double, double inverse) { return double(held) * inverse; }
__device__ inline double float_mean(double held, double divisor, double) { return held / divisor; }
__device__ inline bool is_single(float) { return true; }
__device__ inline bool is_single(double) { return false; }

template <typename R, bool HAS_BASE, typename A, int N>
__device__ inline void divide_float(Result<R, N> &result, const A (&held)[N], double divisor, i64 index, i64 count) {
    double inverse = 1.0 / divisor;
#pragma unroll
    for (int i = 0; i < N; i++) {
        double mean = float_mean(held[i], divisor, inverse), value = mean;
        if (HAS_BASE) value = (R::is_integer ? R::round(mean) : mean) + result.base(i);
        result.set(i, R::round(value) + 0.0, index + i < count);
        // The mean of a float32 total is a float32, and is rounded from there.
        if (R::has_narrow && !HAS_BASE && is_single(held[i])) result.values[i] = R::narrow(float(mean) + 0.0f);
    }
}

// Four elements of a block. Without a base, every way gives the correctly rounded quotient, so each element goes its
// own. With a base, the fast way adds a mean that is a few ulp off, and long division one that is not. So if one
// element of a block needs long division, all of them take it, as on the CPU, where the block is the unit.
template <typename R, bool HAS_BASE>
__device__ inline void divide_exact(Result<R, EACH_LANE> &result, const Digits &digits, i32 level, const Divisor &by,
                                    i64 index, i64 count) {
    if (level == EMPTY) level = 0;
    bool is_near = -15 <= level && level <= 15;
    double unit = is_near ? power_of_two(WIDTH * (level - 1)) : 1.0, factor = unit / by.nearest;
    i64 upper[EACH_LANE], lower[EACH_LANE];
    double value[EACH_LANE];
    bool is_sure[EACH_LANE], is_uncertain = false;
#pragma unroll
    for (int i = 0; i < EACH_LANE; i++) {
        carry(digits.upper[i], digits.lower[i], upper[i], lower[i]);
        is_sure[i] = false;
        value[i] = 0.0;
        if (HAS_BASE && is_near) {
            is_sure[i] = true;
            value[i] = R::is_integer ? quick_mean<R>(upper[i], lower[i], factor, is_sure[i])
                                     : (double(upper[i]) * 0x1p48 + double(lower[i])) * factor;
            value[i] = R::round(value[i] + result.base(i)) + 0.0;
        } else if (is_near) {
            if (R::precision != 53) value[i] = quick_mean<R>(upper[i], lower[i], factor, is_sure[i]);
            if (!is_sure[i]) value[i] = careful_mean<R>(upper[i], lower[i], unit, by, is_sure[i]);
        }
        is_sure[i] = is_sure[i] && fits<R>(value[i]);
        is_uncertain = is_uncertain || (!is_sure[i] && index + i < count);
    }
    if (HAS_BASE) is_uncertain = all_of_sixteen(is_uncertain ? 1 : 0) != 0;
    if (is_uncertain) {
        for (int i = 0; i < EACH_LANE; i++) {
            if (is_sure[i] && !HAS_BASE) continue;
            constexpr bool IS_WHOLE = !HAS_BASE || R::is_integer;
            constexpr int PRECISION = IS_WHOLE ? R::precision : 53, LOWEST = IS_WHOLE ? R::lowest : -1074;
            value[i] = divided(upper[i], lower[i], level, by, PRECISION, LOWEST);
            if (HAS_BASE) value[i] += result.base(i);
            if (!IS_WHOLE) value[i] = R::round(value[i]);
        }
    }
#pragma unroll
    for (int i = 0; i < EACH_LANE; i++) result.set(i, value[i] + 0.0, index + i < count);
}

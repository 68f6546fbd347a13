// Rounding a float64 to a dtype, once, to nearest even, and how the result is stored (see cpu/encode.py).
//
// `narrow` rounds a float32 instead, NaN and infinity too, if `has_narrow`.

// To PRECISION significant bits, but to no finer step than 2^LOWEST. cpu/encode.py explains both ways.
template <int PRECISION, int LOWEST>
__device__ inline double round_to(double value) {
    constexpr int CUT = 53 - PRECISION;
    i64 bits = bits_of(value);
    i64 odd = (bits >> CUT) & 1;
    double normal = from_bits((bits + ((1LL << (CUT - 1)) - 1) + odd) & -(1LL << CUT));
    double magic = 1.5 * power_of_two(52 + LOWEST);
    double tiny = (value + magic) - magic;
    double rounded = fabs(value) < power_of_two(LOWEST + PRECISION - 1) ? tiny : normal;
    return is_finite(value) ? rounded : value;
}

struct ToFloat64 : float64 {
    static constexpr int precision = 53, lowest = -1074;
    static constexpr bool is_integer = false, has_narrow = false;
    __device__ static double low() { return -high(); }
    __device__ static double high() { return GREATEST; }
    __device__ static double round(double value) { return value; }
    __device__ static u64 stored(double rounded) { return u64(bits_of(rounded)); }
    __device__ static u64 narrow(float) { return 0; }
};

struct ToFloat32 : float32 {
    static constexpr int precision = 24, lowest = -149;
    static constexpr bool is_integer = false, has_narrow = true;
    __device__ static double low() { return -high(); }
    __device__ static double high() { return 0x1.fffffep127; }
    __device__ static double round(double value) { return double(float(value)); }
    __device__ static u32 stored(double rounded) { return bits_of(float(rounded)); }
    __device__ static u32 narrow(float value) { return bits_of(value); }
};

struct ToBfloat16 : bfloat16 {
    static constexpr int precision = 8, lowest = -133;
    static constexpr bool is_integer = false, has_narrow = true;
    __device__ static double low() { return -high(); }
    __device__ static double high() { return 0x1.fep127; }
    __device__ static double round(double value) { return round_to<precision, lowest>(value); }
    __device__ static u16 stored(double rounded) { return u16(bits_of(float(rounded)) >> 16); }
    // As `store_single_bfloat16` of cpu/encode.py.
    __device__ static u16 narrow(float value) {
        u32 bits = bits_of(value);
        u32 rounded = bits + 0x7FFFu + (bits >> 16 & 1u);
        return u16((value != value ? bits | 0x00400000u : rounded) >> 16);
    }
};

struct ToFloat16 : float16 {
    static constexpr int precision = 11, lowest = -24;
    static constexpr bool is_integer = false, has_narrow = true;
    __device__ static double low() { return -high(); }
    __device__ static double high() { return 65504.0; }
    __device__ static double round(double value) { return round_to<precision, lowest>(value); }
    // A product of 2^-112 changes the exponent's bias from 127 to 15, exactly, for denormals too.
    __device__ static u16 stored(double rounded) {
        u32 sign = bits_of(float(rounded)) >> 16 & 0x8000u;
        u32 body = bits_of(fabsf(float(rounded)) * 0x1p-112f) >> 13 & 0x7FFFu;
        return u16(sign | (fabs(rounded) <= 65504.0 ? body : 0x7C00u));
    }
    __device__ static u16 narrow(float value) {
        u32 bits = bits_of(value);
        if (value != value) return u16((bits >> 16 & 0x8000u) | 0x7E00u | (bits >> 13 & 0x3FFu));
        u16 magnitude = stored(fabs(round(double(value))));  // a zero of either sign keeps it
        return u16((bits >> 16 & 0x8000u) | magnitude);
    }
};

template <typename D>
struct ToInteger : D {
    static constexpr int precision = 64, lowest = 0;
    static constexpr bool is_integer = true, has_narrow = false;
    typedef typename D::storage storage;
    static constexpr bool is_signed = storage(-1) < storage(0);
    static constexpr int bits = 8 * sizeof(storage) - (is_signed ? 1 : 0);
    __device__ static double high() { return bits > 53 ? 0x1p53 : double((1ull << (bits % 64)) - 1); }
    __device__ static double low() { return !is_signed ? 0.0 : bits > 53 ? -0x1p53 : -double(1ull << (bits % 64)); }
    __device__ static double round(double value) { return rint(value); }
    __device__ static storage stored(double rounded) { return storage(i64(rounded)); }
    __device__ static storage narrow(float) { return 0; }
};

struct ToBoolean : ToInteger<boolean> {
    __device__ static double high() { return 1.0; }
};

template <typename R>
__device__ inline bool fits(double value) { return R::low() <= value && value <= R::high(); }

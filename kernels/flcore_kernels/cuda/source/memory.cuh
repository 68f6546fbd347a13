// How the kernels access memory: number types by width, bits of floats, vectors of 16 bytes, groups of sixteen lanes.
//
// A kernel gets its buffers as addresses, because one launch serves any number of operands. Indices have 64 bits,
// because a model may have more than 2^31 elements. The sources are plain C++ with a few names of CUDA, so that g++
// compiles them for tests. They assume compute capability 7.0: the two halves of a warp may be in different branches.

typedef signed char i8;
typedef unsigned char u8;
typedef short i16;
typedef unsigned short u16;
typedef int i32;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

constexpr double GREATEST = 0x1.fffffffffffffp1023;
constexpr u64 INFINITE = 0x7FF0000000000000ull;  // the bits of the smallest magnitude that is not finite

__device__ inline i64 bits_of(double value) { return __double_as_longlong(value); }
__device__ inline double from_bits(i64 bits) { return __longlong_as_double(bits); }
__device__ inline u32 bits_of(float value) { return __float_as_uint(value); }
__device__ inline float from_bits(u32 bits) { return __uint_as_float(bits); }

__device__ inline bool is_finite(double value) { return fabs(value) <= GREATEST; }
__device__ inline double power_of_two(i64 exponent) { return from_bits((exponent + 1023) << 52); }

template <typename A, typename B>
__device__ inline auto smaller(A a, B b) -> decltype(a + b) { return a < b ? a : b; }
template <typename A, typename B>
__device__ inline auto larger(A a, B b) -> decltype(a + b) { return a > b ? a : b; }

// The type of one access of BYTES bytes. Loads are streaming (__ldcs: evicted first), because an operand is read once.
template <int BYTES> struct Word;
template <> struct Word<1> { typedef unsigned char type; };
template <> struct Word<2> { typedef unsigned short type; };
template <> struct Word<4> { typedef unsigned int type; };
template <> struct Word<8> { typedef uint2 type; };
template <> struct Word<16> { typedef uint4 type; };

// Bytes of one access to N elements: 16 is the widest that a lane has.
template <typename T, int N>
constexpr int width_of = sizeof(T) * N < 16 ? sizeof(T) * N : 16;

// Load elements `index` to `index + N`. The caller knows that all of them exist and that they are aligned. There is no
// branch, so that the compiler issues the loads of several operands before it waits for the first.
template <typename T, int N>
__device__ inline void load_whole(T (&into)[N], u64 address, i64 index) {
    constexpr int EACH = width_of<T, N> / sizeof(T);
    typedef typename Word<width_of<T, N>>::type word;
    const T *from = reinterpret_cast<const T *>(address) + index;
#pragma unroll
    for (int i = 0; i < N; i += EACH) {
        union { word whole; T each[EACH]; } read;
        read.whole = __ldcs(reinterpret_cast<const word *>(from + i));
#pragma unroll
        for (int j = 0; j < EACH; j++) into[i + j] = read.each[j];
    }
}

// The same for any address and any end: elements at or beyond `count` are 0. Vectors if alignment and end allow them.
template <typename T, int N>
__device__ inline void load(T (&into)[N], u64 address, i64 index, i64 count) {
    const T *from = reinterpret_cast<const T *>(address) + index;
    if (index + N <= count && reinterpret_cast<u64>(from) % width_of<T, N> == 0) {
        load_whole(into, address, index);
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) into[i] = index + i < count ? __ldcs(from + i) : T(0);
    }
}

template <typename T, int N>
__device__ inline void store(u64 address, i64 index, i64 count, const T (&values)[N]) {
    constexpr int EACH = width_of<T, N> / sizeof(T);
    typedef typename Word<width_of<T, N>>::type word;
    T *to = reinterpret_cast<T *>(address) + index;
    if (index + N <= count && reinterpret_cast<u64>(to) % width_of<T, N> == 0) {
#pragma unroll
        for (int i = 0; i < N; i += EACH) {
            union { word whole; T each[EACH]; } written;
#pragma unroll
            for (int j = 0; j < EACH; j++) written.each[j] = values[i + j];
            *reinterpret_cast<word *>(to + i) = written.whole;
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; i++)
            if (index + i < count) to[i] = values[i];
    }
}

// Sixteen lanes share a block of 64 elements, four each: of float32, a lane's elements are one load of 16 bytes, and
// their digits take 16 registers. The halves of a warp work on different blocks and may be in different branches, so
// shuffles name their half only (`sixteen`). Within a half, every branch around a shuffle must be the same for all
// lanes: conditions there are made of values that a shuffle has distributed.
constexpr int SIXTEEN = 16, EACH_LANE = 4;

__device__ inline u32 sixteen() { return 0xFFFFu << (threadIdx.x % 32 / SIXTEEN * SIXTEEN); }

// The bitwise OR, or the maximum, of sixteen lanes' values. Exchanging with xor leaves it in every lane, not in one
// only.
__device__ inline u64 all_of_sixteen(u64 value) {
    for (int apart = SIXTEEN / 2; apart > 0; apart /= 2) value |= __shfl_xor_sync(sixteen(), value, apart);
    return value;
}

__device__ inline u64 largest_of_sixteen(u64 value) {
    for (int apart = SIXTEEN / 2; apart > 0; apart /= 2)
        value = larger(value, __shfl_xor_sync(sixteen(), value, apart));
    return value;
}

__device__ inline i64 thread_number() { return i64(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline i64 thread_count() { return i64(gridDim.x) * blockDim.x; }

// What the CUDA sources need to run on a processor: a thread is a fiber, and collectives bring those of a warp together.
//
// Threads of a block run one after the other until each waits or ends; then every collective that all lanes of its mask
// have reached is carried out. Lanes that wait for one another in vain end the process with a message, and so does an
// access that is not aligned or not to the device's memory.

#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <ucontext.h>
#include <utility>
#include <vector>

#define __device__
#define __global__
#define __launch_bounds__(...)
#define __noinline__ __attribute__((noinline))

struct uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct Shape { unsigned x; };

namespace shim {

enum Operation { NONE, SHUFFLE, SHUFFLE_XOR, SYNCHRONIZE };

struct Fiber {
    ucontext_t begin;
    jmp_buf here;
    bool is_begun, is_done;
    Operation operation;
    unsigned mask;
    uint64_t given, got;
    int argument, width;
};

constexpr size_t STACK = 64 << 10;
inline std::vector<Fiber> fibers;
inline char *stacks;  // of as many threads as a launch ever had
inline jmp_buf scheduler;
inline unsigned current;
inline Shape thread, block, threads, blocks;
inline void (*body)(void *);
inline void *body_argument;

inline void fail(const char *what) {
    std::fprintf(stderr, "shim: %s (block %u, thread %u)\n", what, block.x, current);
    std::abort();
}

struct Range { uint64_t first, stop; };
inline const Range *ranges;
inline size_t range_count;

inline void require_device(uint64_t address, size_t bytes) {
    static size_t last = 0;
    if (address % (bytes < 16 ? bytes : 16)) fail("an access is not aligned");
    if (last < range_count && ranges[last].first <= address && address + bytes <= ranges[last].stop) return;
    for (last = 0; last < range_count; last++)
        if (ranges[last].first <= address && address + bytes <= ranges[last].stop) return;
    if (range_count) fail("an access is not to memory of the device");
}

inline void enter() {
    body(body_argument);
    fibers[current].is_done = true;
    longjmp(scheduler, 1);
}

inline uint64_t meet(Operation operation, unsigned mask, uint64_t given, int argument, int width) {
    Fiber &own = fibers[current];
    if (!(mask >> (current % 32) & 1)) fail("a lane takes part in a collective whose mask does not name it");
    own.operation = operation, own.mask = mask, own.given = given, own.argument = argument, own.width = width;
    if (!_setjmp(own.here)) longjmp(scheduler, 1);
    return own.got;
}

inline void resume(unsigned number) {
    current = number;
    thread.x = number;
    if (_setjmp(scheduler)) return;
    Fiber &fiber = fibers[number];
    if (fiber.is_begun) longjmp(fiber.here, 1);
    fiber.is_begun = true;
    setcontext(&fiber.begin);
}

inline unsigned source_of(const Fiber &fiber, unsigned lane) {
    if (fiber.operation == SHUFFLE_XOR) return lane ^ fiber.argument;
    if (fiber.operation == SHUFFLE) return lane / fiber.width * fiber.width + fiber.argument % fiber.width;
    return lane;
}

inline bool carry_out(unsigned number) {
    unsigned first = number / 32 * 32;
    const Fiber asked = fibers[number];
    for (unsigned lane = 0; lane < 32; lane++) {
        if (!(asked.mask >> lane & 1)) continue;
        if (first + lane >= fibers.size()) fail("a mask names lanes that are not there");
        const Fiber &other = fibers[first + lane];
        if (other.is_done) fail("a lane has ended that others wait for");
        if (other.operation != asked.operation || other.mask != asked.mask) return false;
    }
    for (unsigned lane = 0; lane < 32; lane++) {
        if (!(asked.mask >> lane & 1)) continue;
        unsigned source = source_of(fibers[first + lane], lane);
        if (!(asked.mask >> source & 1)) fail("a lane asks for the value of one outside the mask");
        fibers[first + lane].got = fibers[first + source].given;
    }
    for (unsigned lane = 0; lane < 32; lane++)
        if (asked.mask >> lane & 1) fibers[first + lane].operation = NONE;
    return true;
}

inline void run_block() {
    for (unsigned number = 0; number < threads.x; number++) {
        Fiber &fiber = fibers[number];
        fiber = Fiber{};
        getcontext(&fiber.begin);
        fiber.begin.uc_stack.ss_sp = &stacks[number * STACK];
        fiber.begin.uc_stack.ss_size = STACK;
        fiber.begin.uc_link = nullptr;
        makecontext(&fiber.begin, enter, 0);
    }
    for (bool is_moving = true; is_moving;) {
        is_moving = false;
        for (unsigned number = 0; number < threads.x; number++)
            if (!fibers[number].is_done && fibers[number].operation == NONE) {
                resume(number);
                is_moving = true;
            }
        for (unsigned number = 0; number < threads.x; number++)
            if (!fibers[number].is_done && fibers[number].operation != NONE) is_moving = carry_out(number) || is_moving;
    }
    for (unsigned number = 0; number < threads.x; number++)
        if (!fibers[number].is_done) fail("lanes wait for one another in vain");
}

template <typename... P, size_t... I>
void launch(void (*kernel)(P...), unsigned first_block, unsigned count, unsigned width, void **arguments,
            const size_t *sizes, std::index_sequence<I...>) {
    size_t expected[] = {sizeof(P)...};
    for (size_t i = 0; i < sizeof...(P); i++)
        if (expected[i] != sizes[i]) {
            std::fprintf(stderr, "shim: argument %zu has %zu bytes, the kernel takes %zu\n", i, sizes[i], expected[i]);
            std::abort();
        }
    auto call = [&] { kernel(*reinterpret_cast<P *>(arguments[I])...); };
    body = [](void *it) { (*static_cast<decltype(call) *>(it))(); };
    body_argument = &call;
    threads.x = width, blocks.x = first_block + count;
    if (width > fibers.size() || !stacks) {
        std::free(stacks);
        stacks = static_cast<char *>(std::malloc(width * STACK));
    }
    fibers.resize(width);
    for (block.x = first_block; block.x < blocks.x; block.x++) run_block();
}

}  // namespace shim

#define threadIdx shim::thread
#define blockIdx shim::block
#define blockDim shim::threads
#define gridDim shim::blocks

template <typename T> uint64_t as_64(T value) { uint64_t bits = 0; std::memcpy(&bits, &value, sizeof(T)); return bits; }
template <typename T> T from_64(uint64_t bits) { T value; std::memcpy(&value, &bits, sizeof(T)); return value; }

template <typename T> T __ldcs(const T *from) {
    shim::require_device(reinterpret_cast<uint64_t>(from), sizeof(T));
    return *from;
}
template <typename T> T __shfl_xor_sync(unsigned mask, T value, int apart) {
    return from_64<T>(shim::meet(shim::SHUFFLE_XOR, mask, as_64(value), apart, 32));
}
template <typename T> T __shfl_sync(unsigned mask, T value, int source, int width) {
    return from_64<T>(shim::meet(shim::SHUFFLE, mask, as_64(value), source, width));
}
inline void __syncwarp(unsigned mask) { shim::meet(shim::SYNCHRONIZE, mask, 0, 0, 32); }
template <typename T> void atomicMin(T *at, T value) { if (value < *at) *at = value; }
template <typename T> void atomicMax(T *at, T value) { if (value > *at) *at = value; }
inline double __longlong_as_double(long long bits) { return from_64<double>(as_64(bits)); }
inline long long __double_as_longlong(double value) { return from_64<long long>(as_64(value)); }
inline float __uint_as_float(unsigned bits) { return from_64<float>(as_64(bits)); }
inline unsigned __float_as_uint(float value) { return from_64<unsigned>(as_64(value)); }
inline int __clzll(long long bits) { return bits ? __builtin_clzll(bits) : 64; }

using std::fabs, std::fma, std::rint;

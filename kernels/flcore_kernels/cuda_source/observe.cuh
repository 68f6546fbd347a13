// Looking at parts and converting them: what one thread, or sixteen, does with a few elements (see cpu_observe.py).

constexpr int TILE = 4096;
constexpr float LARGEST_SCALE = 0x1.020406p121f;  // with a larger one, code 127 would stand for infinity

// A tile's sum of squares is that of 64 lanes, each summed in order, added one after the other: four are a thread's.
struct Squares {
    double lane[EACH_LANE];

    __device__ double total() const {
        double sum = 0.0;
        int own = threadIdx.x % SIXTEEN;
        for (int turn = 0; turn < SIXTEEN; turn++) {
            if (turn == own)
                for (int i = 0; i < EACH_LANE; i++) sum += lane[i];
            sum = __shfl_sync(sixteen(), sum, turn, SIXTEEN);
        }
        return sum;
    }
};

// What a tile was found to hold: the largest magnitude of its finite elements by its bits, and the first other one.
struct Found {
    u64 top, first_bad;
};

template <typename D>
__device__ inline Found look(Squares &squares, u64 part, u64 scales, i64 tile, i64 size) {
    Found found = {0, ~0ull};
    for (int i = 0; i < EACH_LANE; i++) squares.lane[i] = 0.0;
    i64 stop = smaller(size, (tile + 1) * TILE);
    for (i64 index = tile * TILE + threadIdx.x % SIXTEEN * EACH_LANE; index < stop; index += BLOCK) {
        typename D::storage stored[EACH_LANE];
        load(stored, part, index, size);
        float factor = factor_at<D>(scales, index);
        for (int i = 0; i < EACH_LANE; i++) {
            if (index + i >= size) break;
            double value = double(D::value(stored[i], factor)), magnitude = D::magnitude(stored[i], factor);
            squares.lane[i] += value * value;
            if (is_finite(magnitude)) found.top = larger(found.top, u64(bits_of(magnitude)));
            else found.first_bad = smaller(found.first_bad, u64(index + i));
        }
    }
    found.top = largest_of_sixteen(found.top);
    found.first_bad = ~largest_of_sixteen(~found.first_bad);
    return found;
}

// A block's codes and scale; E consecutive elements a lane, 32 lanes. Returns whether all of them are finite.
constexpr u32 ALL = 0xFFFFFFFFu;

template <int E>
__device__ inline bool quantize_block(u64 values, u64 codes, u64 scales, i64 block, i64 size) {
    i64 index = block * (32 * E) + threadIdx.x % 32 * E;
    u32 stored[E], top = 0;
    load(stored, values, index, size);
    for (int i = 0; i < E; i++) top = larger(top, stored[i] & 0x7FFFFFFFu);
    for (int apart = 16; apart > 0; apart /= 2) top = larger(top, __shfl_xor_sync(ALL, top, apart));
    if (top >= 0x7F800000u) return false;
    float scale = from_bits(top) / 127.0f;
    if (scale < 0x1p-126f) scale = 0.0f;
    scale = smaller(scale, LARGEST_SCALE);
    i8 written[E];
    for (int i = 0; i < E; i++) written[i] = scale > 0.0f ? i8(rintf(from_bits(stored[i]) / scale)) : i8(0);
    store(codes, index, size, written);
    if (threadIdx.x % 32 == 0) reinterpret_cast<float *>(scales)[block] = scale;
    return true;
}

// Sums in float32 and float64: held += weight * value, operand by operand in the order given, in registers.
//
// Each product and each sum is rounded (compiled with --fmad=false), so that the bits are the CPU's.

// A row of the tables: the address of its first element, and of its first scale, in each operand. `is_aligned`: all
// these elements are at multiples of 16 bytes.
struct Row {
    const u64 *operands, *scales;
    const double *weights;
    i64 clients, count;
    bool is_aligned;
};

// N elements of each of COUNT operands, with their factors and weights. If fewer operands are left, the last one fills
// the empty places with weight 0. That changes no bit: see cpu/float.py; in an exact sum, the digits of a zero are
// zero.
template <typename D, int COUNT, int N>
struct Batch {
    typename D::storage stored[COUNT][N];
    float factor[COUNT];
    double weight[COUNT];

    // Issue all loads before the first result is used: a thread has few instructions to hide a load's latency of
    // hundreds of cycles behind. Addresses come first, because vectors depend on them. A branch around a load would
    // order them.
    __device__ void read_whole(const Row &row, i64 first, i64 index) {
        u64 operand[COUNT], scale[COUNT];
#pragma unroll
        for (int j = 0; j < COUNT; j++) {
            i64 k = smaller(first + j, row.clients - 1);
            operand[j] = row.operands[k];
            scale[j] = row.scales[k];
            weight[j] = first + j < row.clients ? row.weights[k] : 0.0;
        }
#pragma unroll
        for (int j = 0; j < COUNT; j++) load_whole(stored[j], operand[j], index);
#pragma unroll
        for (int j = 0; j < COUNT; j++) factor[j] = factor_at<D>(scale[j], index);
    }

    // One operand, at any address; elements may lie beyond the end.
    __device__ void read_any(const Row &row, i64 operand, i64 index) {
        load(stored[0], row.operands[operand], index, row.count);
        factor[0] = index < row.count ? factor_at<D>(row.scales[operand], index) : 1.0f;
        weight[0] = row.weights[operand];
    }

    __device__ bool is_beyond() const {
        bool is_bad = false;
        for (int j = 0; D::is_limited && j < COUNT; j++)
            for (int i = 0; i < N; i++) is_bad = is_bad || D::is_beyond(stored[j][i]);
        return is_bad;
    }
};

constexpr int AT_ONCE = 4;  // operands whose elements are loaded before the first is added

template <typename D, int COUNT, typename R, int N>
__device__ inline bool add_batch(R (&held)[N], const Batch<D, COUNT, N> &batch) {
#pragma unroll
    for (int j = 0; j < COUNT; j++) {
#pragma unroll
        for (int i = 0; i < N; i++) held[i] += R(batch.weight[j]) * R(D::value(batch.stored[j][i], batch.factor[j]));
    }
    return batch.is_beyond();
}

// Add elements of all operands. Returns whether one of them is an element that no sum takes.
template <typename D, typename R, int N>
__device__ inline bool add_operands(R (&held)[N], const Row &row, i64 index) {
    bool is_bad = false;
    i64 k = 0;
    if (row.is_aligned && index + N <= row.count) {
        for (; k + 1 < row.clients; k += AT_ONCE) {
            Batch<D, AT_ONCE, N> batch;
            batch.read_whole(row, k, index);
            is_bad = add_batch(held, batch) || is_bad;
        }
    }
    for (; k < row.clients; k++) {
        Batch<D, 1, N> batch;
        batch.read_any(row, k, index);
        is_bad = add_batch(held, batch) || is_bad;
    }
    return is_bad;
}

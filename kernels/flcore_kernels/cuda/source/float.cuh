// Sums in float32 and float64: held += weight * value, operand by operand in the order given, in registers.
//
// Each product and each sum is rounded (the compiler is told not to contract them), so that the bits are the CPU's.

// A row of the tables: where its first element, and its first scale, is in each operand; whether all operands' elements begin
// at multiples of 16.
struct Row {
    const u64 *operands, *scales;
    const double *weights;
    i64 clients, count;
    bool is_aligned;
};

// Some elements of COUNT operands, and what they are multiplied by. Where there are not as many operands, the last one stands
// in for those that are missing, with a weight of 0, which changes no bit of a sum.
template <typename D, int COUNT, int N>
struct Batch {
    typename D::storage stored[COUNT][N];
    float factor[COUNT];
    double weight[COUNT];

    // Ask for all of it before the first of it has come: addresses first, and then vectors, without a branch.
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

    // One operand's, of which some may lie beyond the end or at any address.
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

constexpr int AT_ONCE = 4;

template <typename D, int COUNT, typename R, int N>
__device__ inline bool add_batch(R (&held)[N], const Batch<D, COUNT, N> &batch) {
#pragma unroll
    for (int j = 0; j < COUNT; j++) {
#pragma unroll
        for (int i = 0; i < N; i++) held[i] += R(batch.weight[j]) * R(D::value(batch.stored[j][i], batch.factor[j]));
    }
    return batch.is_beyond();
}

// Add elements of all operands; returns whether one of them is what no sum takes.
template <typename D, typename R, int N>
__device__ inline bool add_parts(R (&held)[N], const Row &row, i64 index) {
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

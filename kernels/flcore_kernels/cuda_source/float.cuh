// Sums in float32 and float64: held += weight * value, part by part in the order given, in registers.
//
// Each product and each sum is rounded (the compiler is told not to contract them), so that the bits are the CPU's.

constexpr int AT_ONCE = 4;  // parts whose elements are asked for before the first of them is added

// A row of the tables: where its first element, and its first scale, is in each part.
struct Row {
    const u64 *parts, *scales;
    i64 count;
};

template <typename D, typename R, int N>
__device__ inline bool add_parts(R (&held)[N], const Row &row, const double *weights, i64 clients, i64 index) {
    bool is_bad = false;
    for (i64 k = 0; k < clients; k += AT_ONCE) {
        typename D::storage stored[AT_ONCE][N];
        float factor[AT_ONCE];
        i64 left = smaller(i64(AT_ONCE), clients - k);
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++)
            if (j < left) {
                load(stored[j], row.parts[k + j], index, row.count);
                factor[j] = factor_at<D>(row.scales[k + j], index, row.count);
            }
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++)
            if (j < left) {
                R weight = R(weights[k + j]);
#pragma unroll
                for (int i = 0; i < N; i++) {
                    is_bad = is_bad || D::is_beyond(stored[j][i]);
                    held[i] += weight * R(D::value(stored[j][i], factor[j]));
                }
            }
    }
    return is_bad;
}

// The kernels: how rows are shared among threads. A launch serves the same rows of all operands, whatever their number.
//
// Row r has counts[r] elements, which begin at element starts[r] of the total. operands[r * clients + k] is the address
// of its first element in operand k, and scales[r * clients + k] of its first scale. Blocks walk the rows and threads
// the elements with strides, so that any number of blocks is right.
//
// Errors are reported as element indices: bad[0] becomes the smallest index of an error. An exact mean reports results
// that do not fit as bad[1], because an error of an operand at a later element takes precedence.
//
// __launch_bounds__ names the blocks of 256 threads that must fit a multiprocessor with its 65,536 registers: 4 blocks
// leave 64 registers a thread, 3 leave 80, 2 leave 128. If more had to fit, the compiler would save registers by
// loading one operand after the other, which loses the overlap of loads.

__device__ inline void report(u64 *bad, i64 element) { atomicMin(bad, u64(element)); }

// The table of rows. aligned[r]: row r begins at a multiple of 16 bytes in every operand.
struct Rows {
    const u64 *operands, *scales;
    const i64 *counts, *starts;
    const u8 *aligned;
    const double *weights;
    i64 rows, clients;

    __device__ Row operator[](i64 row) const {
        return {operands + row * clients, scales + row * clients, weights, clients, counts[row], aligned[row] != 0};
    }
};

template <typename D, typename A>
__global__ void __launch_bounds__(THREADS, 4)
fold_float(const Rows *given, u64 total, u64 levels, u64 *bad) {
    const Rows rows = *given;
    for (i64 r = blockIdx.x; r < rows.rows; r += gridDim.x) {
        Row row = rows[r];
        u64 here = total + u64(rows.starts[r]) * sizeof(A);
        for (i64 index = i64(threadIdx.x) * D::lanes; index < row.count; index += i64(blockDim.x) * D::lanes) {
            A held[D::lanes];
            load(held, here, index, row.count);
            bool is_bad = add_operands<D>(held, row, index);
            store(here, index, row.count, held);
            for (int i = 0; i < D::lanes; i++)
                if (index + i < row.count && (is_bad || !is_finite(double(held[i])))) {
                    report(bad, rows.starts[r] + index + i);
                    break;
                }
        }
    }
}

template <typename D, typename A, typename R, bool HAS_BASE>
__global__ void __launch_bounds__(THREADS, 3)
mean_float(const Rows *given, const u64 *targets, const u64 *bases, const Divisor *by, u64 *bad) {
    const Rows rows = *given;
    for (i64 r = blockIdx.x; r < rows.rows; r += gridDim.x) {
        Row row = rows[r];
        for (i64 index = i64(threadIdx.x) * D::lanes; index < row.count; index += i64(blockDim.x) * D::lanes) {
            A held[D::lanes] = {};
            Result<R, D::lanes> result;
            result.take_base(HAS_BASE, bases[r], index, row.count);
            bool is_bad = add_operands<D>(held, row, index);
            divide_float<R, HAS_BASE>(result, held, by->nearest, index, row.count);
            store(targets[r], index, row.count, result.values);
            if (is_bad || result.misfit >= 0) report(bad, rows.starts[r] + index + larger(result.misfit, i64(0)));
        }
    }
}

template <typename A, typename R, bool HAS_BASE>
__global__ void __launch_bounds__(THREADS)
finish_float(const Rows *given, u64 total, u64 levels, const u64 *targets, const u64 *bases, const Divisor *by,
             u64 *bad) {
    const Rows rows = *given;
    for (i64 r = blockIdx.x; r < rows.rows; r += gridDim.x) {
        i64 count = rows.counts[r];
        u64 here = total + u64(rows.starts[r]) * sizeof(A);
        for (i64 index = i64(threadIdx.x) * EACH_LANE; index < count; index += i64(blockDim.x) * EACH_LANE) {
            A held[EACH_LANE];
            load(held, here, index, count);
            Result<R, EACH_LANE> result;
            result.take_base(HAS_BASE, bases[r], index, count);
            divide_float<R, HAS_BASE>(result, held, by->nearest, index, count);
            store(targets[r], index, count, result.values);
            if (result.misfit >= 0) report(bad, rows.starts[r] + index + result.misfit);
        }
    }
}

// The element of a row at which sixteen lanes begin, and their stride: each group has a block of 64 elements.
__device__ inline i64 own_block() { return i64(threadIdx.x / SIXTEEN) * BLOCK; }
__device__ inline i64 all_blocks() { return i64(blockDim.x / SIXTEEN) * BLOCK; }

template <typename D>
__global__ void __launch_bounds__(THREADS, 2)
fold_exact(const Rows *given, u64 total, u64 levels, u64 *bad) {
    const Rows rows = *given;
    int lane = threadIdx.x % SIXTEEN;
    i32 guess = 0;
    for (i64 r = blockIdx.x; r < rows.rows; r += gridDim.x) {
        Row row = rows[r];
        for (i64 start = own_block(); start < row.count; start += all_blocks()) {
            i64 block = (rows.starts[r] + start) / BLOCK;
            i16 *stored_level = reinterpret_cast<i16 *>(levels) + block;
            i32 held = *stored_level;
            Digits digits;
            i32 level = add_up<D>(digits, block_address(total, block), held, guess, row, start, lane);
            if (level == BAD) {
                if (lane == 0) report(bad, block * BLOCK);
                continue;
            }
            if (level != EMPTY) guess = level;
            digits.write(block_address(total, block), lane);
            __syncwarp(sixteen());  // all sixteen have read the old level
            if (lane == 0) *stored_level = i16(level);
        }
    }
}

template <typename D, typename R, bool HAS_BASE>
__global__ void __launch_bounds__(THREADS, 2)
mean_exact(const Rows *given, const u64 *targets, const u64 *bases, const Divisor *by, u64 *bad) {
    const Rows rows = *given;
    int lane = threadIdx.x % SIXTEEN;
    i32 guess = 0;
    for (i64 r = blockIdx.x; r < rows.rows; r += gridDim.x) {
        Row row = rows[r];
        for (i64 start = own_block(); start < row.count; start += all_blocks()) {
            Digits digits;
            i32 level = add_up<D>(digits, 0, EMPTY, guess, row, start, lane);
            if (level == BAD) {
                if (lane == 0) report(bad, rows.starts[r] + start);
                continue;
            }
            if (level != EMPTY) guess = level;
            i64 index = start + lane * EACH_LANE;
            Result<R, EACH_LANE> result;
            result.take_base(HAS_BASE, bases[r], index, row.count);
            divide_exact<R, HAS_BASE>(result, digits, level, *by, index, row.count);
            store(targets[r], index, row.count, result.values);
            if (result.misfit >= 0) report(bad + 1, rows.starts[r] + index + result.misfit);
        }
    }
}

template <typename R, bool HAS_BASE>
__global__ void __launch_bounds__(THREADS)
finish_exact(const Rows *given, u64 total, u64 levels, const u64 *targets, const u64 *bases, const Divisor *by,
             u64 *bad) {
    const Rows rows = *given;
    int lane = threadIdx.x % SIXTEEN;
    for (i64 r = blockIdx.x; r < rows.rows; r += gridDim.x) {
        i64 count = rows.counts[r];
        for (i64 start = own_block(); start < count; start += all_blocks()) {
            i64 block = (rows.starts[r] + start) / BLOCK, index = start + lane * EACH_LANE;
            i32 level = reinterpret_cast<const i16 *>(levels)[block];
            Digits digits;
            digits.begin(block_address(total, block), level, level, lane);
            Result<R, EACH_LANE> result;
            result.take_base(HAS_BASE, bases[r], index, count);
            divide_exact<R, HAS_BASE>(result, digits, level, *by, index, count);
            store(targets[r], index, count, result.values);
            if (result.misfit >= 0) report(bad, rows.starts[r] + index + result.misfit);
        }
    }
}

__global__ void __launch_bounds__(THREADS)
merge_exact(u64 total, u64 levels, u64 other, u64 other_levels, i64 blocks) {
    int lane = threadIdx.x % SIXTEEN;
    for (i64 block = thread_number() / SIXTEEN; block < blocks; block += thread_count() / SIXTEEN) {
        i32 mine = reinterpret_cast<const i16 *>(levels)[block];
        i32 theirs = reinterpret_cast<const i16 *>(other_levels)[block];
        i32 level = larger(mine, theirs);
        if (theirs == EMPTY || theirs < level - 1) continue;
        Digits digits, added;
        digits.begin(block_address(total, block), mine, level, lane);
        added.begin(block_address(other, block), theirs, level, lane);
        for (int i = 0; i < EACH_LANE; i++) {
            digits.upper[i] += added.upper[i];
            digits.lower[i] += added.lower[i];
        }
        digits.write(block_address(total, block), lane);
        __syncwarp(sixteen());  // all sixteen have read the old level
        if (lane == 0) reinterpret_cast<i16 *>(levels)[block] = i16(level);
    }
}

__device__ inline float scaled(float value, i32 exponent) { return ldexpf(value, exponent); }
__device__ inline double scaled(double value, i32 exponent) { return ldexp(value, exponent); }

template <typename A>
__global__ void __launch_bounds__(THREADS)
merge_float(u64 total, u64 other, i64 elements, i32 exponent) {
    for (i64 index = thread_number() * EACH_LANE; index < elements; index += thread_count() * EACH_LANE) {
        A held[EACH_LANE], added[EACH_LANE];
        load(held, total, index, elements);
        load(added, other, index, elements);
        for (int i = 0; i < EACH_LANE; i++) held[i] += scaled(added[i], exponent);
        store(total, index, elements, held);
    }
}

// tops[k] becomes the largest magnitude of operand k's finite elements, by its bits; bad[k] the index of the
// first that is not finite. Bits are compared, because many devices are slow in float64.
template <typename D>
__global__ void __launch_bounds__(THREADS)
max_abs(const Rows *given, u64 *tops, u64 *bad) {
    const Rows rows = *given;
    for (i64 r = blockIdx.x; r < rows.rows; r += gridDim.x) {
        Row row = rows[r];
        for (i64 k = 0; k < rows.clients; k++) {
            u64 top = 0;
            i64 first = -1;
            for (i64 index = i64(threadIdx.x) * D::lanes; index < row.count; index += i64(blockDim.x) * D::lanes) {
                typename D::storage stored[D::lanes];
                load(stored, row.operands[k], index, row.count);
                float factor = factor_at<D>(row.scales[k], index);
                for (int i = 0; i < D::lanes; i++) {
                    if (index + i >= row.count) break;
                    u64 bits = u64(bits_of(D::magnitude(stored[i], factor)));
                    if (bits < INFINITE) top = larger(top, bits);
                    else if (first < 0) first = index + i;
                }
            }
            if (first >= 0) report(bad + k, rows.starts[r] + first);
            top = largest_of_sixteen(top);
            if (threadIdx.x % SIXTEEN == 0) atomicMax(tops + k, top);
        }
    }
}

template <typename R>
__global__ void __launch_bounds__(THREADS)
encode(u64 values, u64 out, i64 size) {
    for (i64 index = thread_number() * EACH_LANE; index < size; index += thread_count() * EACH_LANE) {
        u32 read[EACH_LANE];
        typename R::storage written[EACH_LANE];
        load(read, values, index, size);
        for (int i = 0; i < EACH_LANE; i++) written[i] = R::narrow(from_bits(read[i]));
        store(out, index, size, written);
    }
}

template <int E>
__global__ void __launch_bounds__(THREADS)
quantize(u64 values, u64 codes, u64 scales, i64 size, u64 *bad) {
    i64 blocks = (size + 32 * E - 1) / (32 * E);
    for (i64 block = thread_number() / 32; block < blocks; block += thread_count() / 32)
        if (!quantize_block<E>(values, codes, scales, block, size) && threadIdx.x % 32 == 0)
            report(bad, block * (32 * E));
}

template <typename D>
__global__ void __launch_bounds__(THREADS)
decode(u64 operand, u64 scales, u64 out, i64 size) {
    for (i64 index = thread_number() * D::lanes; index < size; index += thread_count() * D::lanes) {
        typename D::storage stored[D::lanes];
        float written[D::lanes];
        load(stored, operand, index, size);
        float factor = factor_at<D>(scales, index);
        for (int i = 0; i < D::lanes; i++) written[i] = float(D::value(stored[i], factor));
        store(out, index, size, written);
    }
}

__global__ void __launch_bounds__(THREADS)
fill(u64 address, i64 count, i16 value) {
    const i16 eight[8] = {value, value, value, value, value, value, value, value};
    for (i64 index = thread_number() * 8; index < count; index += thread_count() * 8)
        store(address, index, count, eight);
}

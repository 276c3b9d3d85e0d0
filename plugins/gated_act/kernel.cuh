// y = activation(gate) * up, elementwise; gate and up may be the halves of one packed tensor.
#pragma once
#include "../device/division.cuh"
#include "../device/launch.cuh"
#include "../device/math.cuh"
#include "../device/vec.cuh"
#include "launch.h"

namespace opfuse {

// ---- kernels

inline constexpr int kThreads = 256;  // of a block
inline constexpr int kTile = 512;     // vectors of y that a block makes at once
// 1 row (4096) takes 0.97 us on four blocks of 128 threads, 1.14 on two of 256.
inline constexpr int kFewThreads = 128;
// Up to so many of these the next launch is let in at once, else behind the fetches: 64 rows (4096)
// take 1.36, not 1.43; 256 take 2.93, not 2.87.
inline constexpr unsigned kBlocksEarly = 400;
// So many blocks, the first, fetch their tile ahead of the wait: 2048 rows (4096) take 14.05 where
// L2 has the packed tensor and 16.8 from memory, 15.0 and 16.9 where all blocks do, 14.0 and 18.0
// where none does (us; the first with a kernel ahead that writes it).  Of more than the second
// number, of whose tensors L2 has nothing by then, all do: 8192 rows (14336) take 228.3, not 229.8.
inline constexpr unsigned kBlocksFetched = 264, kBlocksOfL2 = 8192;
inline constexpr int kSector = 32;  // bytes that L2 fetches
// Up to so many vectors a multiprocessor, each thread has one: all of them are in flight at once.
inline constexpr int kFewVectors = 1024;

template <class T, Activation kActivation, int kVec>
__device__ device::Vec<T, kVec> gate_with(device::Vec<T, kVec> const& gates,
                                          device::Vec<T, kVec> const& ups) {
    auto product = device::widen(gates);
    auto const factor = device::widen(ups);
#pragma unroll
    for (int i = 0; i < kVec; ++i)
        product.at[i] = device::activate<kActivation, T>(product.at[i]) * factor.at[i];
    return device::narrow<T>(product);
}

// Where vectors of y lie in gate and up: those have `gap` more between rows.
struct Places {
    Places(int64_t rows, int64_t vectors, int64_t gap_of_row)
        : gap(gap_of_row), by_row(vectors, rows * vectors) {}

    __device__ int64_t row_of(int64_t vector) const { return by_row.divide(vector).whole; }
    __device__ int64_t of(int64_t vector) const {
        return gap == 0 ? vector : vector + row_of(vector) * gap;
    }

    int64_t gap;
    device::Divider by_row;  // vectors of a row
};

// Blocks tile y by kTile vectors.
template <class T, Activation kActivation>
__global__ void __launch_bounds__(kThreads) gated_act_kernel(T* y,  // `count` vectors
                                                             T const* gate, T const* up,  //
                                                             Places const places, int64_t count) {
    constexpr int kVec = device::kVecBytes / sizeof(T), kItems = kTile / kThreads;
    // `use(k, vector)` for this thread's vectors of a tile.
    auto const for_each = [&](int64_t tile, auto use) {
        int64_t const first = tile * kTile + threadIdx.x;
#pragma unroll
        for (int k = 0; k < kItems; ++k)
            if (first + k * kThreads < count) use(k, first + k * kThreads);
    };
    int64_t at[kItems];
    for_each(blockIdx.x, [&](int k, int64_t vector) {
        at[k] = places.of(vector);
        bool const fetched = blockIdx.x < kBlocksFetched || gridDim.x > kBlocksOfL2;
        if (!device::tuning::kPrefetch || !fetched) return;
        if (threadIdx.x * device::kVecBytes % kSector != 0) return;
        device::prefetch(gate + at[k] * kVec);
        device::prefetch(up + at[k] * kVec);
    });
    device::wait_in_turn();
    for (int64_t tile = blockIdx.x; tile * kTile < count;) {
        device::Vec<T, kVec> gates[kItems], ups[kItems];
        for_each(tile, [&](int k, int64_t) {
            gates[k] = device::load<kVec>(gate, at[k]);
            ups[k] = device::load<kVec>(up, at[k]);
        });
        for_each(tile, [&](int k, int64_t vector) {
            device::store(y, vector, gate_with<T, kActivation>(gates[k], ups[k]));
        });
        tile += gridDim.x;
        for_each(tile, [&](int k, int64_t vector) { at[k] = places.of(vector); });
    }
}

// Few vectors, one a thread: all addresses are known ahead of the wait.
template <class T, Activation kActivation>
__global__ void __launch_bounds__(kFewThreads)
    few_gated_act_kernel(T* y,                        // `count` vectors
                         T const* gate, T const* up,  //
                         Places const places, int count) {
    bool const early = gridDim.x <= kBlocksEarly;
    if (early) device::let_next_start();
    constexpr int kVec = device::kVecBytes / sizeof(T);
    int const own = blockIdx.x * kFewThreads + threadIdx.x, vector = min(own, count - 1);
    int64_t const at = places.of(vector) * kVec;
    T const *const gates = device::settled(gate + at), *const ups = device::settled(up + at);
    T* const to = device::settled(y + int64_t{vector} * kVec);
    if (threadIdx.x * device::kVecBytes % kSector == 0) {
        device::prefetch(gates);
        device::prefetch(ups);
    }
    if (!early) device::let_next_start();
    device::wait_for_previous();
    auto const a = device::load<kVec>(gates, 0), b = device::load<kVec>(ups, 0);
    if (own < count) device::store(to, 0, gate_with<T, kActivation>(a, b));
}

// Where rows start at any element, which `places` counts: a thread makes 16 aligned bytes of y,
// whatever rows they are of.
template <class T, Activation kActivation>
__global__ void __launch_bounds__(kThreads)
    shifted_gated_act_kernel(T* y,                        // [rows, cols]
                             T const* gate, T const* up,  // [rows, cols]
                             Places const places, int64_t rows) {
    constexpr int kVec = device::kVecBytes / sizeof(T);
    using Vec = device::Vec<T, kVec>;
    using Blocks = device::Blocks<T, kVec>;
    int const past = static_cast<int>(reinterpret_cast<uintptr_t>(y) / sizeof(T) % kVec);
    int64_t const cols = places.by_row.size, total = rows * cols;
    int64_t const count = total + (rows - 1) * places.gap;  // of gate, and of up
    int64_t const first = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kVec - past;
    int64_t const start = max(first, int64_t{0});
    int64_t const row = places.row_of(start);
    int64_t column = start - row * cols, at = start + row * places.gap;
    // Blocks of 16 bytes around these elements then lie inside of both tensors.
    bool const inside = at >= kVec && at + 2 * kVec <= count;
    device::wait_in_turn();
    if (first >= 0 && column + kVec <= cols && inside) {
        Blocks const gates(gate + at), ups(up + at);
        Vec const product = gate_with<T, kActivation>(gates.elements(), ups.elements());
        device::store(y + first, 0, product);
        return;
    }
#pragma unroll 1
    for (int64_t i = start; i < min(first + kVec, total); ++i, ++at) {
        device::Vec<T, 1> const one{gate[at]}, other{up[at]};
        y[i] = gate_with<T, kActivation>(one, other).at[0];
        if (++column == cols) {
            column = 0;
            at += places.gap;
        }
    }
}

// ---- launchers

// `run.template operator()<kActivation>()`.
template <class Run>
cudaError_t with_gate(Activation activation, Run run) {
    switch (activation) {
    case Activation::kSilu: return run.template operator()<Activation::kSilu>();
    case Activation::kGelu: return run.template operator()<Activation::kGelu>();
    case Activation::kGeluTanh: return run.template operator()<Activation::kGeluTanh>();
    default: return cudaErrorInvalidValue;
    }
}

template <class T>
cudaError_t gated_act(T* y,                        // [rows, cols], contiguous
                      T const* gate, T const* up,  // [rows, cols], rows `stride` elements apart
                      int64_t stride, int64_t rows, int64_t cols, Activation activation,
                      cudaStream_t stream) {
    constexpr int kVec = device::kVecBytes / sizeof(T);
    if (rows < 0 || cols < 0 || stride < cols) return cudaErrorInvalidValue;
    if (rows == 0 || cols == 0) return cudaSuccess;
    if (stride == cols) {  // nothing between the rows: one long row vectorises whatever cols is
        stride = cols = rows * cols;
        rows = 1;
    }
    device::Machine machine;
    cudaError_t const status = device::current_machine(machine);
    if (status != cudaSuccess) return status;
    bool const aligned =
        device::aligned(y, gate, up) && cols % kVec == 0 && (rows == 1 || stride % kVec == 0);
    int64_t const vectors = rows * cols / kVec;
    bool const few = vectors <= int64_t{machine.multiprocessors} * kFewVectors;
    device::Grid grid;
    auto const cover = [&](int64_t count, int of_block, int threads) {
        grid.blocks = (count + of_block - 1) / of_block;
        grid.threads = dim3(threads);
    };
    return with_gate(activation, [&]<Activation kActivation>() {
        if (!aligned) {
            cover(vectors + 2, kThreads, kThreads);  // one at either end may be shorter
            return device::launch(shifted_gated_act_kernel<T, kActivation>, machine, grid, stream,
                                  y, gate, up, Places(rows, cols, stride - cols), rows);
        }
        Places const places(rows, cols / kVec, (stride - cols) / kVec);
        if (few) {
            cover(vectors, kFewThreads, kFewThreads);
            grid.most_share = device::tuning::kMostShareOfVectors;
            return device::launch(few_gated_act_kernel<T, kActivation>, machine, grid, stream, y,
                                  gate, up, places, static_cast<int>(vectors));
        }
        cover(vectors, kTile, kThreads);
        return device::launch(gated_act_kernel<T, kActivation>, machine, grid, stream, y, gate, up,
                              places, vectors);
    });
}

}  // namespace opfuse

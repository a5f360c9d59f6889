// Attention in which a query reads only the keys kept for it: the device code. nvcc compiles it into the libraries,
// NVRTC into a kernel of its own, a C++ compiler into the emulation that the tests run on a CPU.
//
// A block serves one head of one image: either one prefix query, whose keys (all) its warps share out, or a few patch
// queries of one tile. A warp takes 32 keys a step. First each lane has a key: it computes that key's score for the
// warp's queries. Then each lane has a few columns: it sums the weighted values. Between the two stands the online
// softmax (Milakov and Gimelshein 2018, arXiv 1805.02867) in fp32, so that no row of scores is ever stored and shared
// memory does not grow with the number of tokens.
//
// To put tensor cores in: `add_keys` is the one function that multiplies.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace vitslim
{

constexpr int LANES = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr int VECTOR_BYTES = 16;
constexpr int LARGEST_WIDTH = 128;
// From this tile on its keys are gathered into shared memory, if nobody asks otherwise: then every warp of a block has a
// query. An estimate, not a measurement.
constexpr int STAGED_FROM = 8;
constexpr int STATIC_SHARED_BYTES = 48 * 1024;  // what every GPU grants a block without asking
constexpr float LOG2_E = 1.4426950408889634f;

struct Problem
{
    const void* query;  // (images, heads, tokens, width), like key, value and mixed
    const void* key;
    const void* value;
    const int* kept;  // (images, heads, tiles, keys)
    void* mixed;
    int tokens;
    int width;
    int tiles;
    int keys;
    int tile;
    int prefix;
    float scale;
    bool aligned;  // rows begin at multiples of 16 bytes
};

// Bare bits: trivial types, so that shared arrays of them need no construction.
struct Half
{
    unsigned short bits;
};

struct Brain
{
    unsigned short bits;
};

// NVRTC has no header that names it.
__device__ __forceinline__ float minus_infinity()
{
    return __int_as_float(static_cast<int>(0xff800000u));
}

__device__ __forceinline__ float to_float(float number)
{
    return number;
}

__device__ __forceinline__ float to_float(Half number)
{
    __half_raw raw;
    raw.x = number.bits;
    return __half2float(__half(raw));
}

__device__ __forceinline__ float to_float(Brain number)
{
    __nv_bfloat16_raw raw;
    raw.x = number.bits;
    return __bfloat162float(__nv_bfloat16(raw));
}

__device__ __forceinline__ void set(float& place, float number)
{
    place = number;
}

__device__ __forceinline__ void set(Half& place, float number)
{
    place.bits = static_cast<__half_raw>(__float2half_rn(number)).x;
}

__device__ __forceinline__ void set(Brain& place, float number)
{
    place.bits = static_cast<__nv_bfloat16_raw>(__float2bfloat16_rn(number)).x;
}

template <int BYTES> struct Word;
template <> struct Word<2>
{
    using type = unsigned short;
};
template <> struct Word<4>
{
    using type = unsigned int;
};
template <> struct Word<8>
{
    using type = uint2;
};
template <> struct Word<16>
{
    using type = uint4;
};

// COUNT neighbours that move as one word of 2 to 16 bytes.
template <class T, int COUNT> union Pack
{
    static_assert(sizeof(T) * COUNT <= VECTOR_BYTES, "one word holds at most 16 bytes");
    typename Word<sizeof(T) * COUNT>::type word;
    T at[COUNT];
};

// COUNT elements of a row from `column` on; zeros beyond `width`.
template <int COUNT, class T>
__device__ __forceinline__ Pack<T, COUNT> load(const T* row, int column, int width, bool aligned)
{
    Pack<T, COUNT> pack;
    pack.word = {};
    if (aligned)
    {
        // Aligned rows have a width that COUNT divides, since COUNT elements are at most 16 bytes.
        if (column < width)
        {
            pack.word = *reinterpret_cast<const typename Word<sizeof(T) * COUNT>::type*>(row + column);
        }
        return pack;
    }
#pragma unroll
    for (int i = 0; i < COUNT; ++i)
    {
        if (column + i < width)
        {
            pack.at[i] = row[column + i];
        }
    }
    return pack;
}

template <int COUNT, class T>
__device__ __forceinline__ void store(T* row, int column, int width, bool aligned, const Pack<T, COUNT>& pack)
{
    if (aligned)
    {
        if (column < width)
        {
            *reinterpret_cast<typename Word<sizeof(T) * COUNT>::type*>(row + column) = pack.word;
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < COUNT; ++i)
    {
        if (column + i < width)
        {
            row[column + i] = pack.at[i];
        }
    }
}

__device__ __forceinline__ float warp_max(float number)
{
#pragma unroll
    for (int distance = LANES / 2; distance > 0; distance /= 2)
    {
        number = fmaxf(number, __shfl_xor_sync(ALL_LANES, number, distance));
    }
    return number;
}

__device__ __forceinline__ float warp_sum(float number)
{
#pragma unroll
    for (int distance = LANES / 2; distance > 0; distance /= 2)
    {
        number += __shfl_xor_sync(ALL_LANES, number, distance);
    }
    return number;
}

// Keys and values as rows in global or shared memory; `indices` lists the rows to read, null means all in order.
template <class T> struct Rows
{
    const T* key;
    const T* value;
    const int* indices;
    int stride;
    int width;
    bool aligned;

    __device__ __forceinline__ int place(int index) const
    {
        return indices == nullptr ? index : indices[index];
    }
};

// The softmax of QUERIES rows as far as their keys have been seen; scores count in powers of two.
template <int WIDTH, int QUERIES> struct Running
{
    static constexpr int COLUMNS = WIDTH / LANES;  // of this lane
    float greatest[QUERIES];
    float sum[QUERIES];  // of this lane's keys alone
    float mixed[QUERIES][COLUMNS];

    __device__ __forceinline__ Running()
    {
#pragma unroll
        for (int i = 0; i < QUERIES; ++i)
        {
            greatest[i] = minus_infinity();
            sum[i] = 0.0f;
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c)
            {
                mixed[i][c] = 0.0f;
            }
        }
    }
};

// What one warp keeps in shared memory: its queries, padded with zeros to WIDTH, and the weights of one step.
template <class T, int WIDTH> struct Desk
{
    T (*query)[WIDTH];
    float (*weight)[LANES];
};

// Scores of the warp's queries for the key of this lane.
template <class T, int WIDTH, int QUERIES>
__device__ __forceinline__ void scores_of(
    const Rows<T>& rows, int place, const Desk<T, WIDTH>& desk, int active, float (&score)[QUERIES])
{
    constexpr int VECTOR = VECTOR_BYTES / static_cast<int>(sizeof(T));
    const T* key = rows.key + static_cast<size_t>(place) * rows.stride;
#pragma unroll
    for (int column = 0; column < WIDTH; column += VECTOR)
    {
        if (column >= rows.width)
        {
            break;
        }
        const Pack<T, VECTOR> k = load<VECTOR>(key, column, rows.width, rows.aligned);
#pragma unroll
        for (int i = 0; i < QUERIES; ++i)
        {
            if (i < active)
            {
                const Pack<T, VECTOR> q = load<VECTOR>(desk.query[i], column, WIDTH, true);
#pragma unroll
                for (int x = 0; x < VECTOR; ++x)
                {
                    score[i] = fmaf(to_float(q.at[x]), to_float(k.at[x]), score[i]);
                }
            }
        }
    }
}

// One step: up to 32 keys, rows.place(first) to rows.place(last - 1), for the first `active` queries of the warp.
template <class T, int WIDTH, int QUERIES>
__device__ __forceinline__ void add_keys(const Rows<T>& rows, int first, int last, const Desk<T, WIDTH>& desk,
    int active, float scale, Running<WIDTH, QUERIES>& running)
{
    constexpr int COLUMNS = Running<WIDTH, QUERIES>::COLUMNS;
    const int lane = threadIdx.x % LANES;
    const bool mine = first + lane < last;
    const int place = mine ? rows.place(first + lane) : 0;
    float score[QUERIES] = {};
    if (mine)
    {
        scores_of(rows, place, desk, active, score);
    }
#pragma unroll
    for (int i = 0; i < QUERIES; ++i)
    {
        if (i < active)
        {
            // 2^(s log2 e) = e^s
            const float power = mine ? score[i] * (scale * LOG2_E) : minus_infinity();
            const float greatest = fmaxf(running.greatest[i], warp_max(power));
            const float shrink = exp2f(running.greatest[i] - greatest);
            const float weight = exp2f(power - greatest);
            running.greatest[i] = greatest;
            running.sum[i] = fmaf(running.sum[i], shrink, weight);
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c)
            {
                running.mixed[i][c] *= shrink;
            }
            desk.weight[i][lane] = weight;
        }
    }
    __syncwarp();
    const int count = min(LANES, last - first);
#pragma unroll 4
    for (int j = 0; j < count; ++j)
    {
        const T* value = rows.value + static_cast<size_t>(__shfl_sync(ALL_LANES, place, j)) * rows.stride;
        const Pack<T, COLUMNS> v = load<COLUMNS>(value, lane * COLUMNS, rows.width, rows.aligned);
#pragma unroll
        for (int i = 0; i < QUERIES; ++i)
        {
            if (i < active)
            {
#pragma unroll
                for (int c = 0; c < COLUMNS; ++c)
                {
                    running.mixed[i][c] = fmaf(desk.weight[i][j], to_float(v.at[c]), running.mixed[i][c]);
                }
            }
        }
    }
    // The next step overwrites the weights.
    __syncwarp();
}

// One row of the query tensor onto the desk of the warp.
template <class T, int WIDTH>
__device__ __forceinline__ void lay_query(const Problem& problem, const T* row, T (&desk)[WIDTH])
{
    constexpr int COLUMNS = WIDTH / LANES;
    const int column = (threadIdx.x % LANES) * COLUMNS;
    store<COLUMNS>(desk, column, WIDTH, true, load<COLUMNS>(row, column, problem.width, problem.aligned));
}

template <class T, int WIDTH>
__device__ __forceinline__ void write_row(
    const Problem& problem, T* row, const float (&mixed)[WIDTH / LANES], float sum)
{
    constexpr int COLUMNS = WIDTH / LANES;
    Pack<T, COLUMNS> pack;
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c)
    {
        set(pack.at[c], mixed[c] / sum);
    }
    store<COLUMNS>(row, (threadIdx.x % LANES) * COLUMNS, problem.width, problem.aligned, pack);
}

// How a block is cut: threads, queries, shared memory.
template <class T, int WIDTH, bool STAGED> struct Geometry
{
    static constexpr int WARPS = STAGED && sizeof(T) == 2 ? 8 : 4;
    static constexpr int QUERIES = STAGED ? 4 : 1;  // of a warp
    static constexpr int THREADS = WARPS * LANES;
    static constexpr int QUERIES_PER_BLOCK = WARPS * QUERIES;
    static constexpr int VECTOR = VECTOR_BYTES / static_cast<int>(sizeof(T));
    static constexpr int STAGED_ROWS = STAGED ? LANES : 1;
    // One vector more than the row: eight lanes that read the same column of neighbouring rows hit different banks.
    static constexpr int STAGED_STRIDE = WIDTH + VECTOR;

    static_assert(WIDTH % LANES == 0 && WIDTH <= LARGEST_WIDTH, "each lane has the same number of columns");
    static_assert(WIDTH % VECTOR == 0, "rows in shared memory are whole vectors");
};

template <class T, int WIDTH, bool STAGED> struct Shared
{
    using G = Geometry<T, WIDTH, STAGED>;
    alignas(VECTOR_BYTES) T query[G::QUERIES_PER_BLOCK][WIDTH];
    alignas(VECTOR_BYTES) T key[G::STAGED_ROWS][G::STAGED_STRIDE];
    alignas(VECTOR_BYTES) T value[G::STAGED_ROWS][G::STAGED_STRIDE];
    float weight[G::QUERIES_PER_BLOCK][LANES];
    // What the warps of a prefix query found, each among its own keys.
    float mixed[G::WARPS][WIDTH];
    float greatest[G::WARPS];
    float sum[G::WARPS];
};

// Blocks for one head of one image: the prefix queries, then the parts of each tile.
__host__ __device__ constexpr int parts_of(int tile, int queries_per_block)
{
    return (tile + queries_per_block - 1) / queries_per_block;
}

__host__ __device__ constexpr int groups_of(int prefix, int tiles, int tile, int queries_per_block)
{
    return prefix + tiles * parts_of(tile, queries_per_block);
}

// One head of one image, as rows.
template <class T> struct Head
{
    const T* query;
    T* mixed;
    Rows<T> rows;

    __device__ __forceinline__ Head(const Problem& problem, int head)
    {
        const size_t start = static_cast<size_t>(head) * problem.tokens * problem.width;
        query = static_cast<const T*>(problem.query) + start;
        mixed = static_cast<T*>(problem.mixed) + start;
        rows = {static_cast<const T*>(problem.key) + start, static_cast<const T*>(problem.value) + start, nullptr,
            problem.width, problem.width, problem.aligned};
    }
};

// The parts that the warps computed, as one row; by the first warp.
template <class T, int WIDTH, bool STAGED>
__device__ __forceinline__ void join_parts(const Problem& problem, const Shared<T, WIDTH, STAGED>& shared, T* row)
{
    constexpr int COLUMNS = WIDTH / LANES;
    constexpr int WARPS = Geometry<T, WIDTH, STAGED>::WARPS;
    const int lane = threadIdx.x % LANES;
    float greatest = minus_infinity();
    for (int w = 0; w < WARPS; ++w)
    {
        greatest = fmaxf(greatest, shared.greatest[w]);
    }
    float sum = 0.0f;
    float mixed[COLUMNS] = {};
    for (int w = 0; w < WARPS; ++w)
    {
        // A warp that had no keys has greatest = -inf, hence the factor 2^-inf = 0.
        const float shrink = exp2f(shared.greatest[w] - greatest);
        sum = fmaf(shared.sum[w], shrink, sum);
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c)
        {
            mixed[c] = fmaf(shared.mixed[w][lane * COLUMNS + c], shrink, mixed[c]);
        }
    }
    write_row<T, WIDTH>(problem, row, mixed, sum);
}

// A block for one prefix query: all keys, shared out among the warps 32 by 32.
template <class T, int WIDTH, bool STAGED>
__device__ __forceinline__ void attend_to_all(
    const Problem& problem, Shared<T, WIDTH, STAGED>& shared, const Head<T>& head, int query)
{
    using G = Geometry<T, WIDTH, STAGED>;
    constexpr int COLUMNS = WIDTH / LANES;
    const int warp = threadIdx.x / LANES;
    const int lane = threadIdx.x % LANES;
    const Desk<T, WIDTH> desk = {shared.query + warp, shared.weight + warp};
    const size_t row = static_cast<size_t>(query) * problem.width;
    lay_query<T, WIDTH>(problem, head.query + row, desk.query[0]);
    __syncwarp();
    Running<WIDTH, 1> running;
    for (int first = warp * LANES; first < problem.tokens; first += G::THREADS)
    {
        add_keys(head.rows, first, min(first + LANES, problem.tokens), desk, 1, problem.scale, running);
    }
    const float sum = warp_sum(running.sum[0]);
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c)
    {
        shared.mixed[warp][lane * COLUMNS + c] = running.mixed[0][c];
    }
    if (lane == 0)
    {
        shared.greatest[warp] = running.greatest[0];
        shared.sum[warp] = sum;
    }
    __syncthreads();
    if (warp == 0)
    {
        join_parts<T, WIDTH, STAGED>(problem, shared, head.mixed + row);
    }
}

// The block's next keys and values, from global into shared memory; columns beyond the width become zero.
template <class T, int WIDTH>
__device__ __forceinline__ void stage(
    const Rows<T>& rows, int first, int count, Shared<T, WIDTH, true>& shared)
{
    using G = Geometry<T, WIDTH, true>;
    constexpr int VECTORS = WIDTH / G::VECTOR;
    for (int index = threadIdx.x; index < count * VECTORS; index += G::THREADS)
    {
        const int row = index / VECTORS;
        const int column = index % VECTORS * G::VECTOR;
        const size_t from = static_cast<size_t>(rows.place(first + row)) * rows.stride;
        const auto key = load<G::VECTOR>(rows.key + from, column, rows.width, rows.aligned);
        const auto value = load<G::VECTOR>(rows.value + from, column, rows.width, rows.aligned);
        store<G::VECTOR>(shared.key[row], column, WIDTH, true, key);
        store<G::VECTOR>(shared.value[row], column, WIDTH, true, value);
    }
}

// The kept keys of a tile, for the block's queries, gathered once.
template <class T, int WIDTH, int QUERIES>
__device__ __forceinline__ void add_kept(const Problem& problem, const Rows<T>& rows, Shared<T, WIDTH, true>& shared,
    const Desk<T, WIDTH>& desk, int active, Running<WIDTH, QUERIES>& running)
{
    using G = Geometry<T, WIDTH, true>;
    const Rows<T> staged = {shared.key[0], shared.value[0], nullptr, G::STAGED_STRIDE, WIDTH, true};
    for (int first = 0; first < problem.keys; first += LANES)
    {
        const int count = min(LANES, problem.keys - first);
        stage(rows, first, count, shared);
        __syncthreads();
        if (active > 0)
        {
            add_keys(staged, 0, count, desk, active, problem.scale, running);
        }
        // Nobody may still read these keys when the next ones come.
        __syncthreads();
    }
}

// The kept keys of a tile, for one warp, each read where it lies.
template <class T, int WIDTH, int QUERIES>
__device__ __forceinline__ void add_kept(const Problem& problem, const Rows<T>& rows, Shared<T, WIDTH, false>&,
    const Desk<T, WIDTH>& desk, int active, Running<WIDTH, QUERIES>& running)
{
    if (active == 0)
    {
        return;
    }
    for (int first = 0; first < problem.keys; first += LANES)
    {
        add_keys(rows, first, min(first + LANES, problem.keys), desk, active, problem.scale, running);
    }
}

// A block for a part of a tile: a few queries for each warp.
template <class T, int WIDTH, bool STAGED>
__device__ __forceinline__ void attend_to_kept(
    const Problem& problem, Shared<T, WIDTH, STAGED>& shared, const Head<T>& head, const int* kept, int tile, int part)
{
    using G = Geometry<T, WIDTH, STAGED>;
    const int warp = threadIdx.x / LANES;
    const int tile_start = problem.prefix + tile * problem.tile;
    const int tile_queries = min(problem.tile, problem.tokens - tile_start);
    // The i-th query of a warp is the (i WARPS)-th after its first, so that short tiles give every warp work.
    const int offset = part * G::QUERIES_PER_BLOCK + warp;
    const size_t row = static_cast<size_t>(tile_start + offset) * problem.width;
    const size_t step = static_cast<size_t>(G::WARPS) * problem.width;
    const Desk<T, WIDTH> desk = {shared.query + warp * G::QUERIES, shared.weight + warp * G::QUERIES};
    int active = 0;
    for (; active < G::QUERIES && offset + active * G::WARPS < tile_queries; ++active)
    {
        lay_query<T, WIDTH>(problem, head.query + row + active * step, desk.query[active]);
    }
    __syncwarp();
    Rows<T> rows = head.rows;
    rows.indices = kept;
    Running<WIDTH, G::QUERIES> running;
    add_kept(problem, rows, shared, desk, active, running);
#pragma unroll
    for (int i = 0; i < G::QUERIES; ++i)
    {
        if (i < active)
        {
            write_row<T, WIDTH>(problem, head.mixed + row + i * step, running.mixed[i], warp_sum(running.sum[i]));
        }
    }
}

// One block; there are groups_of(...) of them for each head of each image.
template <class T, int WIDTH, bool STAGED> __device__ __forceinline__ void attend(const Problem& problem)
{
    using G = Geometry<T, WIDTH, STAGED>;
    __shared__ Shared<T, WIDTH, STAGED> shared;
    static_assert(sizeof(shared) <= STATIC_SHARED_BYTES, "the kernel asks for no dynamic shared memory");
    const int groups = groups_of(problem.prefix, problem.tiles, problem.tile, G::QUERIES_PER_BLOCK);
    const int number = blockIdx.x / groups;  // of the head, counted through all images
    const int group = blockIdx.x % groups;
    const Head<T> head(problem, number);
    if (group < problem.prefix)
    {
        attend_to_all<T, WIDTH, STAGED>(problem, shared, head, group);
        return;
    }
    const int parts = parts_of(problem.tile, G::QUERIES_PER_BLOCK);
    const int tile = (group - problem.prefix) / parts;
    const int* kept = problem.kept + (static_cast<size_t>(number) * problem.tiles + tile) * problem.keys;
    attend_to_kept<T, WIDTH, STAGED>(problem, shared, head, kept, tile, (group - problem.prefix) % parts);
}

}  // namespace vitslim

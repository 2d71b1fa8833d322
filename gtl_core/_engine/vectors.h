/* Matrix products for small convolutions: sums stay in registers, pixels in the cache.

Order in memory, last index fastest: activations [row, column, channel]; weights [tap, in, out] with the nine taps of
a 3x3 window row by row. Each lane sums for a channel of its own, so the width of the machine's vectors changes no order
of summation. */

#ifndef WIDTH
#ifdef __AVX512F__
#define WIDTH 16
#else
#define WIDTH 8 /* two registers each where vectors are of 128 bits */
#endif
#endif
enum { TILE = 6, CHUNK = 4 };        /* pixels whose sums are in registers; images that are in the cache at once */
enum { NEAR = 64 };                  /* pixels that are in the nearest cache */
enum { BLOCKS = 8, CHANNELS = 1024 }; /* at most */

typedef float vector __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

typedef struct { /* which products make an output: for every run, `length` inputs from `offset` on, times weights */
    int n, length, offset[4];
    const float *weight[4];
} Runs;

/* With constants for the last arguments: each kind gets a loop of its own, with its sums in registers. */
#define INLINE static inline __attribute__((always_inline))

INLINE void multiply_by(const float *in, const int *from, int n, const Runs *runs, int channels, const float *start,
                        float *out, const int *to, const int vectors) {
    for (int c = 0; c < channels; c += vectors * WIDTH)
        for (int m = 0; m < n; m += TILE) {
            vector sum[TILE][2];
            const float *pixel[TILE];
            for (int t = 0; t < TILE; t++) {
                pixel[t] = in + from[m + t < n ? m + t : n - 1]; /* beyond the last one: the last one again */
                for (int v = 0; v < vectors; v++) sum[t][v] = *(const vector *)(start + c + v * WIDTH);
            }
            for (int r = 0; r < runs->n; r++) {
                const float *weight = runs->weight[r] + c;
                const int begin = runs->offset[r], end = begin + runs->length;
                for (int j = begin; j < end; j++, weight += channels) {
                    vector w[2];
                    for (int v = 0; v < vectors; v++) w[v] = *(const vector *)(weight + v * WIDTH);
#pragma GCC unroll 6
                    for (int t = 0; t < TILE; t++)
                        for (int v = 0; v < vectors; v++) sum[t][v] += pixel[t][j] * w[v];
                }
            }
            for (int t = 0; t < TILE; t++)
                for (int v = 0; v < vectors; v++)
                    *(vector *)(out + to[m + t < n ? m + t : n - 1] + c + v * WIDTH) = sum[t][v];
        }
}

/* out[to[m] + c] = start[c] + the sum over runs of in[from[m] + offset + j] * weight[j][c], for n pixels m and all
channels c. */
static void multiply(const float *in, const int *from, int n, const Runs *runs, int channels, const float *start,
                     float *out, const int *to) {
    if (channels % (2 * WIDTH))
        multiply_by(in, from, n, runs, channels, start, out, to, 1);
    else
        multiply_by(in, from, n, runs, channels, start, out, to, 2);
}

INLINE void outer_by(const float *in, const int *from, const float *gradient, const int *at, int n, int rows,
                     int channels, float *total, int add, const int at_once, const int vectors) {
    for (int c = 0; c < channels; c += vectors * WIDTH)
        for (int j = 0; j < rows; j += at_once) {
            vector sum[TILE][2];
            float *where = total + j * channels + c;
            for (int t = 0; t < at_once; t++)
                for (int v = 0; v < vectors; v++)
                    sum[t][v] = add ? *(vector *)(where + t * channels + v * WIDTH) : (vector){0};
            for (int m = 0; m < n; m++) {
                const float *a = in + from[m] + j, *g = gradient + at[m] + c;
                vector b[2];
                for (int v = 0; v < vectors; v++) b[v] = *(const vector *)(g + v * WIDTH);
#pragma GCC unroll 6
                for (int t = 0; t < at_once; t++)
                    for (int v = 0; v < vectors; v++) sum[t][v] += a[t] * b[v];
            }
            for (int t = 0; t < at_once; t++)
                for (int v = 0; v < vectors; v++) *(vector *)(where + t * channels + v * WIDTH) = sum[t][v];
        }
}

/* total[j][c] = itself, if `add`, + the sum over n pixels m of in[from[m] + j] * gradient[at[m] + c], for all channels
c and `rows` inputs j, a multiple of three. */
static void outer(const float *in, const int *from, const float *gradient, const int *at, int n, int rows, int channels,
                  float *total, int add) {
    const int one = channels % (2 * WIDTH) != 0, three = rows % TILE != 0;
    if (three && one)
        outer_by(in, from, gradient, at, n, rows, channels, total, add, 3, 1);
    else if (three)
        outer_by(in, from, gradient, at, n, rows, channels, total, add, 3, 2);
    else if (one)
        outer_by(in, from, gradient, at, n, rows, channels, total, add, TILE, 1);
    else
        outer_by(in, from, gradient, at, n, rows, channels, total, add, TILE, 2);
}

/* from [rows, columns] -> to [columns, rows]; both multiples of 8, in squares that stay in registers. */
static void turn(const float *restrict from, int rows, int columns, float *restrict to) {
    for (int i = 0; i < rows; i += 8)
        for (int o = 0; o < columns; o += 8)
            for (int k = 0; k < 8; k++)
                for (int j = 0; j < 8; j++) to[(o + k) * rows + i + j] = from[(i + j) * columns + o + k];
}

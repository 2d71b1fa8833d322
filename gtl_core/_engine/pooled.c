/* Forward and backward pass of a basic convolutional body.

A body is a sequence of blocks; a block is a 3x3 convolution without padding, with bias, 2x2 max-pooling that leaves out
an odd last row and column, and ReLU. Images are square and have one channel. Order in memory as in vectors.h, images
after each other. As in blocks.c, a few images at a time stay in the cache. */

#include <stdlib.h>
#include <string.h>

#include "vectors.h"

typedef int integers __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

enum { NOTHING = 4 }; /* no pixel of a window was chosen, since ReLU made zero of it; 0 to 3: row by row */

typedef struct {
    int in, out;          /* channels */
    int side, wide, half; /* of images that come in, of what is convolved and pooled, and of images that go out */
    int rim;              /* `wide` with two zeros around, as far as windows reach */
    const float *weight, *bias;
    float *image;         /* of a chunk, what comes in [images, side * side, in] */
    int *chosen;          /* and which pixel of each window was the largest [images, half * half, out] */
    float *convolved;
    float *gradient;      /* of what goes out */
    float *turned;        /* weights [tap, out, in], the last tap first */
    float *rimmed;        /* the gradient of `convolved`, in a rim that stays zero */
    int *from, *to, *at;  /* where the pixels of `convolved` begin in `image`, in it, and in `rimmed` */
    void *own[8];         /* its buffers */
} Pooled;

static int area(int side) { return side * side; }

static void prepare(Pooled *body, int blocks, const int *shapes, float *const *parameters) {
    for (int l = 0; l < blocks; l++) {
        Pooled *b = body + l;
        b->in = shapes[3 * l], b->out = shapes[3 * l + 1], b->side = shapes[3 * l + 2];
        b->half = (b->side - 2) / 2, b->wide = 2 * b->half, b->rim = b->wide + 4;
        b->weight = parameters[2 * l], b->bias = parameters[2 * l + 1];
        const size_t n = CHUNK * area(b->wide), out = CHUNK * area(b->half) * b->out;
        const size_t sizes[8] = {l ? 0 : CHUNK * area(b->side), out, n * b->out, CHUNK * area(b->rim) * b->out,
                                 (size_t)9 * b->in * b->out, n, n, n};
        for (int k = 0; k < 8; k++) b->own[k] = calloc(sizes[k] + 64, 4);
        b->image = b->own[0], b->gradient = b->own[1], b->convolved = b->own[2], b->rimmed = b->own[3];
        b->turned = b->own[4], b->from = b->own[5], b->to = b->own[6], b->at = b->own[7];
        for (int m = 0; m < (int)n; m++) {
            const int i = m / area(b->wide), row = m % area(b->wide) / b->wide, column = m % b->wide;
            b->from[m] = ((i * b->side + row) * b->side + column) * b->in;
            b->to[m] = m * b->out;
            b->at[m] = ((i * b->rim + row + 2) * b->rim + column + 2) * b->out;
        }
    }
}

static void release(Pooled *body, int blocks) {
    for (int l = 0; l < blocks; l++)
        for (int k = 0; k < 8; k++) free(body[l].own[k]);
}

/* The largest of each window of one image, then ReLU: x [wide * wide, out] -> y [half * half, out]. A NaN counts as the
largest, as in torch; of equals, the first is chosen. */
static void pool(const Pooled *b, const float *x, float *y, int *chosen) {
    const int next[4] = {0, b->out, b->wide * b->out, (b->wide + 1) * b->out};
    for (int row = 0; row < b->half; row++)
        for (int column = 0; column < b->half; column++) {
            const float *first = x + (2 * row * b->wide + 2 * column) * b->out;
            for (int c = 0; c < b->out; c += WIDTH, y += WIDTH, chosen += WIDTH) {
                vector best = *(const vector *)(first + c);
                integers which = {0};
                for (int t = 1; t < 4; t++) {
                    const vector v = *(const vector *)(first + next[t] + c);
                    const integers better = (v > best) | (v != v);
                    best = (vector)(((integers)v & better) | ((integers)best & ~better));
                    which = (t & better) | (which & ~better);
                }
                const integers dead = best <= 0;
                *(vector *)y = (vector)((integers)best & ~dead);
                *(integers *)chosen = (NOTHING & dead) | (which & ~dead);
            }
        }
}

/* d [half * half, out], the gradient of one image's pooled values -> that of its convolution, in rimmed. Adds to
d_bias. */
static void pool_backward(const Pooled *b, const float *d, const int *chosen, float *rimmed, float *d_bias) {
    const int next[4] = {0, b->out, b->rim * b->out, (b->rim + 1) * b->out};
    for (int row = 0; row < b->half; row++)
        for (int column = 0; column < b->half; column++) {
            float *first = rimmed + ((2 * row + 2) * b->rim + 2 * column + 2) * b->out;
            for (int c = 0; c < b->out; c += WIDTH, d += WIDTH, chosen += WIDTH) {
                const integers g = *(const integers *)d, which = *(const integers *)chosen;
                for (int t = 0; t < 4; t++) *(vector *)(first + next[t] + c) = (vector)(g & (which == t));
                *(vector *)(d_bias + c) += (vector)(g & (which != NOTHING));
            }
        }
}

/* n images in `image` through all blocks -> features [n, out, half, half] of the last one. Every block's input stays
in `image`, and in `chosen` what `backward_through` needs. */
static void forward_through(Pooled *body, int blocks, int n, float *features) {
    for (Pooled *b = body; b < body + blocks; b++) {
        const int row = b->side * b->in, of_row = 3 * b->in * b->out, of_one = area(b->half) * b->out;
        const Runs runs = {3, 3 * b->in, {0, row, 2 * row}, {b->weight, b->weight + of_row, b->weight + 2 * of_row}};
        multiply(b->image, b->from, n * area(b->wide), &runs, b->out, b->bias, b->convolved, b->to);
        float *y = b < body + blocks - 1 ? b[1].image : b->gradient;
        for (int i = 0; i < n; i++)
            pool(b, b->convolved + i * area(b->wide) * b->out, y + i * of_one, b->chosen + i * of_one);
    }
    const Pooled *last = body + blocks - 1;
    for (int i = 0, pixels = area(last->half); i < n; i++)
        for (int m = 0; m < pixels; m++)
            for (int c = 0; c < last->out; c++)
                features[(i * last->out + c) * pixels + m] = last->gradient[(i * pixels + m) * last->out + c];
}

/* The gradient of a block's input from that of its convolution. An input pixel lies in windows that begin up to two
pixels before it; where no window reaches, its gradient is 0. */
static void input_gradient(const Pooled *b, int n, const float *zeros, float *to_input) {
    const int reached = b->wide + 2, row = b->rim * b->out, of_row = 3 * b->in * b->out;
    int from[CHUNK * area(reached)], to[CHUNK * area(reached)], count = 0;
    for (int i = 0; i < n; i++)
        for (int r = 0; r < reached; r++)
            for (int c = 0; c < reached; c++, count++) {
                from[count] = ((i * b->rim + r) * b->rim + c) * b->out;
                to[count] = ((i * b->side + r) * b->side + c) * b->in;
            }
    const Runs runs = {3, 3 * b->out, {0, row, 2 * row}, {b->turned, b->turned + of_row, b->turned + 2 * of_row}};
    if (reached < b->side) memset(to_input, 0, (size_t)n * area(b->side) * b->in * sizeof(float));
    multiply(b->rimmed, from, count, &runs, b->in, zeros, to_input, to);
}

/* The gradients d of weight and bias of every block, from those of the features; added to what is there, if `add`. */
static void backward_through(Pooled *body, int blocks, int n, const float *d_features, float *const *d, int add,
                             const float *zeros) {
    const Pooled *last = body + blocks - 1;
    for (int i = 0, pixels = area(last->half); i < n; i++)
        for (int m = 0; m < pixels; m++)
            for (int c = 0; c < last->out; c++)
                last->gradient[(i * pixels + m) * last->out + c] = d_features[(i * last->out + c) * pixels + m];
    for (int l = blocks - 1; l >= 0; l--) {
        const Pooled *b = body + l;
        const int of_one = area(b->half) * b->out, all = n * area(b->wide);
        if (!add) memset(d[2 * l + 1], 0, b->out * sizeof(float));
        for (int i = 0; i < n; i++)
            pool_backward(b, b->gradient + i * of_one, b->chosen + i * of_one, b->rimmed + i * area(b->rim) * b->out,
                          d[2 * l + 1]);
        for (int m = 0; m < all; m += NEAR)
            for (int tap = 0; tap < 3; tap++)
                outer(b->image + tap * b->side * b->in, b->from + m, b->rimmed, b->at + m,
                      all - m < NEAR ? all - m : NEAR, 3 * b->in, b->out, d[2 * l] + 3 * tap * b->in * b->out,
                      add || m);
        if (l) input_gradient(b, n, zeros, body[l - 1].gradient);
    }
}

/* The chunk from image number `first` on: its images, and where it keeps what came out of every block but the last, and
what was chosen in each: from number `place` on. */
static void begin(Pooled *body, int blocks, const float *x, int first, int n, int *const *chosen, float *const *passed,
                  long place) {
    memcpy(body->image, x + (long)first * area(body->side), (size_t)n * area(body->side) * sizeof(float));
    for (int l = 0; l < blocks; l++) {
        body[l].chosen = chosen[l] + place * area(body[l].half) * body[l].out;
        if (l) body[l].image = passed[l - 1] + place * area(body[l].side) * body[l].in;
    }
}

/* x [images, side, side] -> features [images, out, half, half] of the last block. shapes: of each block, channels in and
out, and the side of its images. parameters: weight and bias of each block. chosen: of each block, passed: of each but
the last, [images, half * half, out], for `pooled_backward`; if not `kept`, there is room for one chunk. */
void pooled_forward(int blocks, const int *shapes, float *const *parameters, int images, const float *x,
                    int *const *chosen, float *const *passed, int kept, float *features) {
    Pooled body[BLOCKS];
    prepare(body, blocks, shapes, parameters);
    const long of_one = area(body[blocks - 1].half) * body[blocks - 1].out;
    for (int i = 0; i < images; i += CHUNK) {
        const int n = images - i < CHUNK ? images - i : CHUNK;
        begin(body, blocks, x, i, n, chosen, passed, kept ? i : 0);
        forward_through(body, blocks, n, features + i * of_one);
    }
    release(body, blocks);
}

/* gradients: in the order of `parameters`, of the sum of features * d_features. */
void pooled_backward(int blocks, const int *shapes, float *const *parameters, int images, const float *x,
                     int *const *chosen, float *const *passed, const float *d_features, float *const *gradients) {
    Pooled body[BLOCKS];
    prepare(body, blocks, shapes, parameters);
    const float zeros[CHANNELS] = {0};
    const long of_one = area(body[blocks - 1].half) * body[blocks - 1].out;
    for (int l = 1; l < blocks; l++)
        for (int tap = 0, in = body[l].in, out = body[l].out; tap < 9; tap++)
            turn(body[l].weight + tap * in * out, in, out, body[l].turned + (8 - tap) * in * out);
    for (int i = 0; i < images; i += CHUNK) {
        const int n = images - i < CHUNK ? images - i : CHUNK;
        begin(body, blocks, x, i, n, chosen, passed, i);
        backward_through(body, blocks, n, d_features + i * of_one, gradients, i > 0, zeros);
    }
    release(body, blocks);
}

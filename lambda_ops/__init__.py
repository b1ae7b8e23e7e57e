"""How the lambda layer is computed: PyTorch alone, the same result by several ways.

Cost of the position output per image, forward (`rule.choose_way` picks, from measured costs):

    way                    multiplications        floats held, beside input and output
    lambda order           n·c·u·k·v + n·h·k·v    t·c·u·k embedding, n/t·c·u·v windows, n·k·v lambdas
    attention order        n·c·u·h·(k + v)        t·c·u·k embedding, n/t·c·u·v windows, a piece of n·h·c·u
    convolution            n·r²·u·k·v + n·h·k·v   n·k·v lambdas
    fourier, f = (W+r/2)/2 4f·H²·u·k·v + 2f·n·k·v 4f·H²·u·k embedding, 4f·H·k·v and n·k·v lambdas
    fft, N = (H + r/2)²    N·k·v·(log N + u)      about 4·N·k·v

The first two are dense products between the t positions of a tile and the c positions of its context: the whole map
(t = c = n) or, for a local scope, small tiles with a halo: t = 4·4, c = 10·10 for r = 7. Fourier order goes to
frequencies along the map's last axis alone, both ways by a dense product with a Fourier matrix, and sums over the other
axes as dense products, too, one for each of f frequencies. Attention order does fewer multiplications where
h(k + v) < kv, and wins on the CPU with small maps and narrow scopes; Fourier order with maps of 16 and 32, the FFT with
larger ones and wide scopes.

The batch goes through in chunks that stay in cache, so that the products' intermediates exist for one chunk at a time.
For the backward pass queries, values and embedding are kept, and all else is computed again (in attention order
k/(4k + 3v) of the whole work): neither λ_p (b, n, k, v) nor attention (b, n, h, m) is ever kept.

Each module imports from those above it alone:

    sizes       lengths of the spatial axes
    recording   which operations may be used where they are written down
    chunks      work in pieces that stay in cache
    modules     when a weight may be read in place of calling its module
    linear      the projections' product
    tiles       a map in tiles, each with its context
    orders      attention order and lambda order
    maps        convolution and FFT
    fourier     Fourier order
    rule        the way that is cheapest
    position    the position output, by that way

Sizes, in comments and names throughout, besides those of `lambda_layer`:
    t positions of a tile    c positions of a tile's context    B tiles of the whole batch
"""

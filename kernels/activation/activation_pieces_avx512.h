#pragma once
// Swish and GELU for products of bf16 and int8, whose results are rounded to fewer bits than the
// error below.
#include "kernels/simd/avx512.h"

namespace xsr::kernels {

/// f(x) = max(x, 0) + P(|x|): what is beside the ramp is even and dies away. P is one of sixteen
/// cubics, four an octave of v = 1 + scale |x|, so that the bits of v are the place in the tables
/// and a table is one register. |error| ≤ 2^-16 min(1, |x|); NaN stays NaN. The coefficients come
/// from scripts/fit-activations.py.
struct ActivationPieces {
  float scale;
  float bound;                            // beyond it P is what it is there, at most 5e-6
  alignas(64) float coefficients[4][16];  // [degree][(bits of v >> 21) mod 16]
};

static constexpr ActivationPieces kSwishPieces = {
    1,
    14.9999f,
    {{0.00273789722f, -0.0464510955f, -0.174777016f, -0.352448463f, -0.580183566f, -0.691964149f,
      -0.604963839f, -0.444640398f, -0.236211881f, -0.0787022188f, -0.0221623853f, -0.00556723867f,
      0, 0.000317327387f, 0.00200885325f, 0.00488817645f},
     {-0.520327747f, -0.424180239f, -0.232096285f, -0.0180431325f, 0.205538198f, 0.293784142f,
      0.242508277f, 0.162161738f, 0.0743966624f, 0.0207270384f, 0.00499339029f, 0.00109407771f,
      -0.500010073f, -0.503641307f, -0.513748229f, -0.525439084f},
     {0.297839969f, 0.234950587f, 0.138864055f, 0.0527598746f, -0.0205713455f, -0.043806985f,
      -0.0337218642f, -0.0202845484f, -0.00794534851f, -0.00183874881f, -0.000377674238f,
      -7.20330499e-05f, 0.25072512f, 0.265470743f, 0.285812855f, 0.301706731f},
     {-0.049193155f, -0.0354250893f, -0.0193620138f, -0.00779780187f, 0.000237789602f,
      0.00227803504f, 0.00161605189f, 0.000866107468f, 0.000286846014f, 5.48542012e-05f,
      9.57947123e-06f, 1.58783928e-06f, -0.00775687862f, -0.0290736742f, -0.0428636707f,
      -0.0500971302f}}};
static constexpr ActivationPieces kGeluErfPieces = {
    2.72727275f,
    5.4999f,
    {{0.00200173794f, 0.00528460881f, 0.00691905012f, -0.000650644361f, -0.0496262573f,
      -0.213683888f, -0.436630875f, -0.583331585f, -0.509981811f, -0.188260987f, -0.0312028844f,
      -0.00253922935f, 0, 2.05608594e-05f, 0.000162466633f, 0.000587889692f},
     {-0.518512249f, -0.536598265f, -0.543708861f, -0.519491255f, -0.391931325f, -0.0575944632f,
      0.309415251f, 0.512662411f, 0.434363157f, 0.139414936f, 0.019943377f, 0.00141693396f,
      -0.500001609f, -0.50063616f, -0.502917707f, -0.507530391f},
     {0.463842124f, 0.497207731f, 0.507510483f, 0.481655627f, 0.370735437f, 0.143039867f,
      -0.0586759038f, -0.152628049f, -0.124889478f, -0.034581773f, -0.00425723847f,
      -0.000263769296f, 0.399255931f, 0.406184733f, 0.418537349f, 0.4352853f},
     {-0.1038002f, -0.124409005f, -0.129380837f, -0.12016917f, -0.0879613683f, -0.0361396484f,
      0.000875180354f, 0.01536493f, 0.012105722f, 0.00287159951f, 0.000303448294f, 1.63788973e-05f,
      -0.00912923552f, -0.0360374972f, -0.0585632473f, -0.0789271966f}}};
static constexpr ActivationPieces kGeluTanhPieces = {
    2.72727275f,
    5.4999f,
    {{0.00199892558f, 0.00523469876f, 0.00671982998f, -0.00106462091f, -0.0498127975f,
      -0.210689157f, -0.43055445f, -0.583701372f, -0.525198221f, -0.186063066f, -0.0226774048f,
      -0.000862382294f, 0, 2.0651969e-05f, 0.000163034303f, 0.000589078933f},
     {-0.518500447f, -0.536336064f, -0.542839527f, -0.517913997f, -0.390901774f, -0.0629897043f,
      0.298821181f, 0.510691106f, 0.449598521f, 0.139194772f, 0.0146565745f, 0.00048623656f,
      -0.500001609f, -0.500639021f, -0.502928317f, -0.507548034f},
     {0.463872403f, 0.496792346f, 0.506270051f, 0.479636282f, 0.369151533f, 0.145790875f,
      -0.052999381f, -0.150798857f, -0.129716784f, -0.0348330513f, -0.00316052069f,
      -9.13930853e-05f, 0.399257451f, 0.406217754f, 0.418613136f, 0.435387522f},
     {-0.104023077f, -0.12436647f, -0.128963634f, -0.119465813f, -0.0873721093f, -0.0365275964f,
      -6.18774138e-05f, 0.0150004914f, 0.0126008429f, 0.00291471882f, 0.000227362907f,
      5.72639237e-06f, -0.00917418581f, -0.0362064205f, -0.0588114187f, -0.0792087168f}}};

/// Null for the others.
static inline const ActivationPieces* activation_pieces(Activation activation) {
  switch (activation) {
    case Activation::kSwish:
      return &kSwishPieces;
    case Activation::kGeluErf:
      return &kGeluErfPieces;
    case Activation::kGeluTanh:
      return &kGeluTanhPieces;
    default:
      return nullptr;
  }
}

static inline __m512 activate_by_pieces(__m512 x, const ActivationPieces& pieces) {
  // min and max give their second operand where that is NaN.
  const __m512 u = _mm512_min_ps(_mm512_set1_ps(pieces.bound), _mm512_abs_ps(x));
  const __m512 v = _mm512_fmadd_ps(u, _mm512_set1_ps(pieces.scale), _mm512_set1_ps(1.0f));
  const __m512i place = _mm512_srli_epi32(_mm512_castps_si512(v), 21);
  const auto coefficient = [&](int degree) {
    return _mm512_permutexvar_ps(place, _mm512_load_ps(pieces.coefficients[degree]));
  };
  __m512 p = _mm512_fmadd_ps(coefficient(3), u, coefficient(2));
  p = _mm512_fmadd_ps(p, u, coefficient(1));
  p = _mm512_fmadd_ps(p, u, coefficient(0));
  return _mm512_add_ps(_mm512_max_ps(_mm512_setzero_ps(), x), p);
}

}  // namespace xsr::kernels
